"""Floor 5: the steps of an assembly, each joining floor 4's packages, which do not know each other."""
