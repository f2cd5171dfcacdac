"""Floor 4: trees become layers."""
