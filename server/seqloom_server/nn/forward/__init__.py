"""A network's way forward: convolution, recurrent layers, outputs; many sequences by many steps in one call."""
