"""The connection to one server: its gRPC channel and stubs, and retries. It knows no particular call."""
