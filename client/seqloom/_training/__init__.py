"""Gradients and training runs: requests, delivery of each call exactly once, and results."""
