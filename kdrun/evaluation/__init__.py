"""Measurement of networks."""
