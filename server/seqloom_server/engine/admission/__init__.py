"""What is let in, and what is refused at the door: predictions, loads, bounds. Knows no order and no network."""
