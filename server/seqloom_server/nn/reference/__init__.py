"""Every formula in plain NumPy, as it is written: what the tests hold the fast paths against."""
