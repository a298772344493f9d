"""InferenceService: whole sequences and live streams over gRPC. Knows nothing of training."""
