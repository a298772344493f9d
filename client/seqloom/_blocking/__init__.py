"""The blocking client, which runs the asynchronous client on an event loop in a thread."""
