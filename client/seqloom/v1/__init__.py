"""The generated stubs of package seqloom.v1."""
