"""Folder for `evaluate.load`; the metric is in `region_similarity.py`."""
