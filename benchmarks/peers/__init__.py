"""Triton, which Seqloom is measured beside: its environment, its models, its load."""
