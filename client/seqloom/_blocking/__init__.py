"""The blocking client: a twin of the asynchronous one, whose loop runs in a thread."""
