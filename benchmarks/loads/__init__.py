"""What callers, streams and trainers do, and what with."""
