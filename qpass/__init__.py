"""Compiler passes for Paddle inference models."""
