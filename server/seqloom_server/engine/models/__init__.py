"""The registry of served models: their folders, versions and weights on the device. Knows nothing of training."""
