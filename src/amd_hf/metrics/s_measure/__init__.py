"""Folder for `evaluate.load`; the metric is in `s_measure.py`."""
