"""Shared by all gRPC calls: field checks, error statuses, requests in parts, metrics, memory limits. No servicers."""
