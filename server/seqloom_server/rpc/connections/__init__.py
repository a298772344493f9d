"""The bounds of gRPC's connections, whatever is called on them: number, addresses, age. No servicers."""
