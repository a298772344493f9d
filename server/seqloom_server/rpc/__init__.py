"""The gRPC services: decode and check requests, pass them to the engine, encode its results."""
