"""ModelService: lists, creates, loads, imports and exports models over gRPC."""
