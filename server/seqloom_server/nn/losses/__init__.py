"""The output layer in training: losses and the gradients of the outputs. Knows no recurrence."""
