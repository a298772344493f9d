"""The connection to one server: its channel, its retries, and what a fork does to both. Knows no kind of call."""
