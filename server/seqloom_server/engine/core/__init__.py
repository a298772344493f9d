"""Shared by the engine's rooms: sequences, training jobs, state slots, cost model, names. Imports no other room."""
