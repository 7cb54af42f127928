"""Classical saliency: cues of three layers of ever larger regions, joined in a tree (HS).

Written from Yan et al., Hierarchical saliency detection, CVPR 2013.
"""

import itertools

import numpy as np
from numpy.typing import NDArray

from amd_hf.metrics._arrays import FloatArray
from amd_hf.saliency.superpixels import NEEDS_SCIKIT_IMAGE, region_means, unit_range

# Regions of a layer hold a square of at least this side, in pixels of a 400-pixel image.
LAYER_SCALES = (3, 17, 33)
# How much a layer's own cue counts, and how closely a region follows the one around it.
CUE_WEIGHTS = (0.5, 4.0, 2.0)
TREE_WEIGHT = 4.0
CONTRAST_SPREAD = 0.2
CENTER_FALL = 9.0
WATERSHED_SMOOTHING = 1.0


def initial_regions(image: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Watershed regions of the image's gradient, shape (H, W), from 0 to N - 1.

    Raises:
        ImportError: If scikit-image is not installed.
    """
    try:
        from skimage.color import rgb2gray
        from skimage.filters import gaussian, sobel
        from skimage.segmentation import watershed
    except ImportError as error:
        raise ImportError(NEEDS_SCIKIT_IMAGE) from error
    edges = sobel(gaussian(rgb2gray(image), WATERSHED_SMOOTHING))
    found = watershed(edges, connectivity=2)
    return np.unique(found, return_inverse=True)[1].reshape(found.shape).astype(np.int64)


def encompassed_sides(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Side of the largest square that fits into each region, shape (N,).

    Args:
        labels: Region of every pixel, shape (H, W), from 0 to N - 1.
    """
    height, width = labels.shape
    sides = np.ones(int(labels.max()) + 1, dtype=np.int64)
    # squares[y, x]: side of the largest one-region square whose lower right corner is (y, x).
    squares = np.ones((height, width), dtype=np.int64)
    same = np.zeros((height, width), dtype=bool)
    same[1:, 1:] = (
        (labels[1:, 1:] == labels[:-1, 1:])
        & (labels[1:, 1:] == labels[1:, :-1])
        & (labels[1:, 1:] == labels[:-1, :-1])
    )
    side, fits = 1, np.ones((height, width), dtype=bool)
    while fits.any():
        squares[fits] = side
        grown = np.zeros_like(fits)
        grown[1:, 1:] = fits[1:, 1:] & fits[:-1, 1:] & fits[1:, :-1] & fits[:-1, :-1]
        fits = grown & same
        side += 1
    np.maximum.at(sides, labels.ravel(), squares.ravel())
    return sides


def merge_small_regions(
    labels: NDArray[np.int64], colors: NDArray[np.floating], scale: int
) -> NDArray[np.int64]:
    """Regions after the small ones joined the neighbor of the nearest color.

    Args:
        labels: Region of every pixel, shape (H, W), from 0 to N - 1.
        colors: Pixel colors of shape (H, W, 3), in a space where distances mean differences.
        scale: Regions that hold no square of this side are merged.

    Returns:
        Labels of shape (H, W), from 0 to M - 1, M <= N; each old region lies in one new one.

    Source: Yan et al., CVPR 2013, Sec. 3.1-3.2.
    """
    while True:
        is_small = encompassed_sides(labels) < scale
        if not is_small.any() or is_small.size == 1:
            return labels
        means = region_means(labels, colors)
        pairs = _touching(labels)
        distances = np.linalg.norm(means[pairs[:, 0]] - means[pairs[:, 1]], axis=1)
        labels = _joined(labels, _nearest_neighbors(pairs, distances, is_small))


def _touching(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pairs of regions that touch, each in both orders, shape (P, 2)."""
    count = int(labels.max()) + 1
    right = labels[:, :-1].ravel() * count + labels[:, 1:].ravel()
    down = labels[:-1].ravel() * count + labels[1:].ravel()
    first, second = np.divmod(np.unique(np.concatenate([right, down])), count)
    differ = first != second
    both = np.stack([first[differ], second[differ]], axis=1)
    return np.unique(np.concatenate([both, both[:, ::-1]]), axis=0)


def _nearest_neighbors(
    pairs: NDArray[np.int64], distances: FloatArray, is_small: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """For every region the one it joins: itself, or its nearest neighbor where it is small."""
    target = np.arange(len(is_small))
    order = np.argsort(distances, kind="stable")
    regions, first = np.unique(pairs[order, 0], return_index=True)
    target[regions] = np.where(is_small[regions], pairs[order[first], 1], regions)
    return target


def _joined(labels: NDArray[np.int64], target: NDArray[np.int64]) -> NDArray[np.int64]:
    """Labels after every region joined its target, and chains of targets their end."""
    root = np.arange(len(target))

    def find(node: int) -> int:
        while root[node] != node:
            root[node] = root[root[node]]
            node = int(root[node])
        return node

    for node, other in enumerate(target):
        first, second = find(node), find(int(other))
        root[max(first, second)] = min(first, second)
    ends = np.array([find(node) for node in range(len(target))])
    return np.unique(ends, return_inverse=True)[1].reshape(-1)[labels].astype(np.int64)


def layer_cues(labels: NDArray[np.int64], lab: FloatArray) -> FloatArray:
    """Local contrast times nearness to the center, scaled to [0, 1], shape (N,).

    Args:
        labels: Region of every pixel, shape (H, W), from 0 to N - 1.
        lab: Pixel colors of shape (H, W, 3).

    Source: Yan et al., CVPR 2013, Eqs. 1-4.
    """
    height, width = labels.shape
    y, x = np.mgrid[0:height, 0:width]
    places = np.stack([(y + 0.5) / height, (x + 0.5) / width], axis=-1)
    colors, centers = region_means(labels, lab), region_means(labels, places)
    sizes = np.bincount(labels.ravel()) / labels.size
    between = np.square(centers[:, None] - centers[None]).sum(axis=2)
    differences = np.linalg.norm(colors[:, None] - colors[None], axis=2)
    contrast = (sizes[None] * np.exp(-between / CONTRAST_SPREAD) * differences).sum(axis=1)
    nearness = np.exp(-CENTER_FALL * np.square(places - 0.5).sum(axis=-1, keepdims=True))
    return unit_range(contrast * region_means(labels, nearness)[:, 0])


def infer_tree(cues: list[FloatArray], parents: list[NDArray[np.int64]]) -> list[FloatArray]:
    """Saliency of all layers that is near their cues and near the regions around them.

    Args:
        cues: Cue of every region, finest layer first.
        parents: For every layer but the last, the region of the next layer around each region.

    Returns:
        Saliency of every region, finest layer first; the exact minimum of the quadratic energy.

    Source: Yan et al., CVPR 2013, Eqs. 5-9.
    """
    # Upward: what each region would be on its own, as a weighted mean of cue and children.
    weights = [np.full(len(cue), weight) for cue, weight in zip(cues, CUE_WEIGHTS, strict=True)]
    sums = [cue * weight for cue, weight in zip(cues, weights, strict=True)]
    for layer, parent in enumerate(parents):
        share = TREE_WEIGHT * weights[layer] / (TREE_WEIGHT + weights[layer])
        value = sums[layer] / weights[layer]
        weights[layer + 1] += np.bincount(parent, share, minlength=len(weights[layer + 1]))
        sums[layer + 1] += np.bincount(parent, share * value, minlength=len(sums[layer + 1]))
    # Downward: the last layer is decided, each finer one follows.
    result = [sums[-1] / weights[-1]]
    for layer in reversed(range(len(parents))):
        above = result[0][parents[layer]]
        result.insert(0, (sums[layer] + TREE_WEIGHT * above) / (weights[layer] + TREE_WEIGHT))
    return result


def hierarchical_saliency(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Saliency by contrast and location in three layers of regions (HS).

    Args:
        image: RGB image of shape (H, W, 3), uint8.

    Returns:
        Soft mask of shape (H, W) in [0, 1].

    Raises:
        ImportError: If scikit-image is not installed.

    Source: Yan et al., CVPR 2013.
    """
    layers = [initial_regions(image)]
    from skimage.color.colorconv import rgb2lab, rgb2luv

    luv, lab = rgb2luv(image), rgb2lab(image)
    scale = max(image.shape[:2]) / 400
    for side in LAYER_SCALES:
        layers.append(merge_small_regions(layers[-1], luv, max(2, round(side * scale))))
    layers = layers[1:]
    cues = [layer_cues(labels, lab) for labels in layers]
    parents = [
        np.rint(region_means(finer, coarser[..., None])[:, 0]).astype(np.int64)
        for finer, coarser in itertools.pairwise(layers)
    ]
    saliency = infer_tree(cues, parents)[0]
    return unit_range(saliency)[layers[0]].astype(np.float32)
