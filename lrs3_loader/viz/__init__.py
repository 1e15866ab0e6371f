"""Pictures and pages of what was extracted."""
