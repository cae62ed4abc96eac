"""Quantization: specs, sites, encodings, observers and scales."""
