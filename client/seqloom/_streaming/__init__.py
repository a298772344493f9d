"""Live streams and whole sequences, which share calls, windows and a budget of bytes."""
