"""Images, videos and pages of what was extracted."""
