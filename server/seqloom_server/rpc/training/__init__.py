"""Gradients and runs over gRPC: from parts of a request to a training call, and its results back."""
