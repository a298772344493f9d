"""From callers' arguments to protobuf messages and back."""
