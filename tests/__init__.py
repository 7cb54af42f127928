"""Test helpers and tests of amd_hf."""
