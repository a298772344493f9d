"""Training batches and runs: numbered calls done once, steps, checkpoints. Knows no gRPC and no live streams."""
