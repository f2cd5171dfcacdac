"""Floor 3: what would happen, and under which key."""
