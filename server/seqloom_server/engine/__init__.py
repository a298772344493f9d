"""The engine: gathers what has arrived into slices, runs them on one device thread, and hands every caller its own."""
