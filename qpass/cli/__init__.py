"""The qpass command."""
