"""Pre-training, fine-tuning and test-time adaptation.

Only `adapt_to_video` is imported with the package: the loops need the `train` extra.
"""

from amd_hf.adaptation_amd import adapt_to_video

__all__ = ["adapt_to_video"]
