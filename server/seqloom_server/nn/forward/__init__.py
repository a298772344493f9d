"""The forward pass: convolution, recurrent layers and outputs, of many sequences and steps in one call."""
