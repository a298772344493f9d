"""What each benchmark measures: each part yields rows of a table."""
