"""Lint: traps of deployment engines that a quantized file can fall into, found before the engine does."""
