"""Device, memory, transfers and threads of this process."""
