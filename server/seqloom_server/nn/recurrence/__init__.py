"""The recurrent layers in training: forward and backward over packed rows, in pieces that can be interrupted.

Outputs for callers are computed in nn/forward.
"""
