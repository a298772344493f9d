"""Recurrent networks on torch: what they are made of, their arithmetic, their files. Knows nothing of requests."""
