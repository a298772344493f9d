"""The device thread: packs, copies and runs slices, and returns their results. Decides nothing about order."""
