"""Unsupervised object segmentation learned from raw video."""

from amd_hf._version import __version__

__all__ = ["__version__"]
