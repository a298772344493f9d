"""Gradients and runs: requests, numbered calls that survive a lost connection, and results."""
