"""Folder for `evaluate.load`; the metric is in `e_measure.py`."""
