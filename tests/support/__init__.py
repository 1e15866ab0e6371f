"""What tests share: made-up clips, faces, runs and services, and readers to compare with."""
