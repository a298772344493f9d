"""What moves through the engine, and what its rooms share. Imports no other room of the engine."""
