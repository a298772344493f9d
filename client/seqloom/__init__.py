"""The Seqloom SDK."""
