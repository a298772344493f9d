"""The device thread: how a slice's rows get to the device, run and come back. Decides nothing about order."""
