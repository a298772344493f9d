"""Recurrent networks on torch: specifications, forward and backward passes, optimizers, files. Knows no requests."""
