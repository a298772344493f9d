"""Networks on disk: model folders written whole or not at all, and imports of torch.nn's own files."""
