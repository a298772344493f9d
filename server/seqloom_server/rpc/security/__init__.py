"""Who may call: tokens and their limits, TLS, and where the server may listen. Knows nothing of what calls do."""
