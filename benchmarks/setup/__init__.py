"""What parts are given to measure with: options, a server with its models, recordings, goals."""
