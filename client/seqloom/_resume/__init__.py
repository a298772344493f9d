"""What lets live streams go on after a lost connection or server: what is kept of them, and how they return."""
