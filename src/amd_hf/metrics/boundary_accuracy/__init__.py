"""Folder for `evaluate.load`; the metric is in `boundary_accuracy.py`."""
