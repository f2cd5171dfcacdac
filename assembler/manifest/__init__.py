"""Floor 2: what the user said."""
