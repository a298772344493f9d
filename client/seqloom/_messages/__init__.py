"""Converts callers' arguments to protobuf messages, and replies to results."""
