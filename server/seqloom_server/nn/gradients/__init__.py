"""A network's way back: gradients of many callers out of one batch, each its own, or their sum."""
