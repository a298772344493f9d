"""Recurrent layers over padded batches as CUDA graphs, for GPUs."""
