"""Networks on disk: model folders, which are replaced atomically, and imports of torch.nn's state dicts."""
