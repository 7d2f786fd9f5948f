"""Residual unit."""
