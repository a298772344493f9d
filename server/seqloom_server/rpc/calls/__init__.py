"""What every call shares: checks of fields, statuses of errors, parts, metrics and memory. Knows no servicer."""
