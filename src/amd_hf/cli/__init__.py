"""The `amd-hf` command."""
