"""Watching a run while it trains: its page, and trackers of others that get the same figures."""
