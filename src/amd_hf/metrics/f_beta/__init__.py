"""Folder for `evaluate.load`; the metric is in `f_beta.py`."""
