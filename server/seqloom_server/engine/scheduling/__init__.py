"""What runs next, and how much of it: plain bookkeeping under one lock. Knows no torch and reads no clock."""
