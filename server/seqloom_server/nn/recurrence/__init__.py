"""The recurrences of training, forward and back, layer by layer over packed rows, in pieces that can be interrupted."""
