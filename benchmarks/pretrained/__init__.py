"""Trained networks that public packages ship."""
