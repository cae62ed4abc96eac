"""Rewriting: the edit transaction, patterns, the `Pass` protocol, pipelines and their reports."""
