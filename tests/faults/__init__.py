"""Faults on purpose: killed processes, full disks, cut networks, and what must hold afterwards."""
