"""Runnable examples: each one drives the daemon the way a user would."""
