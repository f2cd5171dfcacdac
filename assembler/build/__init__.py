"""Floor 4: work inside containers of this host."""
