"""Folder for `evaluate.load`; the metric is in `mask_stability.py`."""
