"""From the top layer's states to losses and the gradient of the outputs. Knows no recurrence."""
