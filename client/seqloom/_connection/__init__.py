"""The connection to one server: its gRPC channel and stubs, the call that all runs share, and retries."""
