"""Concrete passes, one a file."""
