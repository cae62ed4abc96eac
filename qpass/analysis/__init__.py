"""Sensitivity analysis: layers, sweeps, statistics, skip lists, checkpoints."""
