"""Folder for `evaluate.load`; the metric is in `mae.py`."""
