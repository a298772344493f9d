"""Recurrent layers over padded rectangles as CUDA graphs, for GPUs."""
