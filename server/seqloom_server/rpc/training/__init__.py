"""TrainingService: gradients and training runs over gRPC."""
