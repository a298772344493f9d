"""The models that are served: their folders, versions and weights on the device. Knows nothing of training."""
