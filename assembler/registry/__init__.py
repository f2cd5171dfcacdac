"""Floor 4: talking to registries."""
