"""Reference implementations of every formula in plain NumPy, against which tests compare the fast ones."""
