"""Inference of live streams and of whole sequences, over one gRPC call that all sessions of a client share."""
