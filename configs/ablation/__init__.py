"""Experiments that differ in one thing."""
