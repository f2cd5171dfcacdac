"""Floor 1: what the OCI specifications say, as values and streams."""
