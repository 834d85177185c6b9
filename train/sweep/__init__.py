"""Sweeps: a grid of networks, trained many at once, and their table."""
