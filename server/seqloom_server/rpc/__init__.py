"""The gRPC shell: decodes and checks, hands to the engine, encodes what comes back."""
