"""Training batches and runs: numbered calls, optimizer steps, checkpoints. Knows no gRPC and no live streams."""
