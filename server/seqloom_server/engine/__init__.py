"""The engine: batches sequences into slices, runs them on one device thread, and delivers each caller's results."""
