"""How anything is measured: child processes, rounds, rows, results, pictures."""
