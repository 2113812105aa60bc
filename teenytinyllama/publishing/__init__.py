"""Cards written from a run's files, and their way to the Hub."""
