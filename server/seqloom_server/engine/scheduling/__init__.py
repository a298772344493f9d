"""The scheduler: decides what runs next and how much of it. Knows no torch and reads no clock."""
