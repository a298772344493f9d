"""Models over gRPC: listed, described, imported and exported in parts."""
