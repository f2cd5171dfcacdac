"""Assemble OCI images for GPU and LLM stacks from YAML manifests. Importing this imports nothing else."""

__version__ = "0.1.0"
