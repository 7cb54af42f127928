"""Folder for `evaluate.load`; the metric is in `mean_iou.py`."""
