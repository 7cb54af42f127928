"""Classical saliency of single images, nothing learned: baselines, and a witness of pseudo-masks.

A leaf of the package: it imports nothing of ours but array types.
"""

from amd_hf.saliency.hierarchical import hierarchical_saliency
from amd_hf.saliency.reconstruction import reconstruction_saliency
from amd_hf.saliency.superpixels import markov_chain_saliency, robust_background_saliency

__all__ = [
    "hierarchical_saliency",
    "markov_chain_saliency",
    "reconstruction_saliency",
    "robust_background_saliency",
]
