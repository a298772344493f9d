"""Whole sequences and live streams over gRPC: from messages to the engine and back. Knows nothing of training."""
