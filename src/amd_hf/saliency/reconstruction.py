"""Classical saliency: what the image's border cannot reconstruct (DSR).

Written from Li et al., Saliency detection via dense and sparse reconstruction, ICCV 2013.
"""

import numpy as np
from numpy.typing import NDArray

from amd_hf.metrics._arrays import BoolArray, FloatArray
from amd_hf.saliency.superpixels import (
    SuperpixelGraph,
    region_means,
    superpixel_graph,
    unit_range,
)

# The paper's eight scales; fewer would be faster and noisier.
SUPERPIXEL_COUNTS = (50, 100, 150, 200, 250, 300, 350, 400)
KEPT_VARIANCE = 0.95
SPARSITY = 0.01
SPARSE_STEPS = 200
NUM_CLUSTERS = 8
CLUSTER_ROUNDS = 20
CONTEXT_WEIGHT = 0.5
CENTER_SPREAD = 0.25  # share of the image side
NUM_BINS = 32
EPSILON = 1e-6


def segment_features(image: NDArray[np.uint8], graph: SuperpixelGraph) -> FloatArray:
    """Mean Lab, RGB and position of the superpixels, each about in [0, 1], shape (N, 8)."""
    lab = graph.colors / 100.0
    return np.concatenate([lab, region_means(graph.labels, image) / 255.0, graph.centers], axis=1)


def dense_errors(features: FloatArray, templates: FloatArray) -> FloatArray:
    """Squared errors of reconstruction by the templates' principal components.

    Args:
        features: Features of shape (N, D).
        templates: Background features of shape (M, D).

    Returns:
        Array of shape (N,); 0 for features in the span of the kept components.

    Source: Li et al., ICCV 2013, Eqs. 2-3.
    """
    mean = templates.mean(axis=0)
    centered = templates - mean
    values, vectors = np.linalg.eigh(centered.T @ centered)
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
    if values[0] <= EPSILON:
        return np.square(features - mean).sum(axis=1)
    shares = np.cumsum(values) / values.sum()
    kept = vectors[:, : int(np.searchsorted(shares, KEPT_VARIANCE)) + 1]
    offsets = features - mean
    return np.square(offsets - offsets @ kept @ kept.T).sum(axis=1)


def sparse_errors(features: FloatArray, templates: FloatArray) -> FloatArray:
    """Squared errors of reconstruction by few templates (l1-regularized least squares).

    Args:
        features: Features of shape (N, D).
        templates: Background features of shape (M, D).

    Returns:
        Array of shape (N,).

    Source: Li et al., ICCV 2013, Eqs. 4-5; solved by accelerated proximal gradient (FISTA).
    """
    gram, target = templates @ templates.T, features @ templates.T
    step = 1 / (2 * np.linalg.eigvalsh(gram)[-1] + EPSILON)
    codes = momentum = np.zeros(target.shape)
    weight = 1.0
    for _ in range(SPARSE_STEPS):
        moved = momentum - 2 * step * (momentum @ gram - target)
        shrunk = np.sign(moved) * np.maximum(np.abs(moved) - step * SPARSITY, 0)
        next_weight = (1 + np.sqrt(1 + 4 * weight**2)) / 2
        momentum = shrunk + (weight - 1) / next_weight * (shrunk - codes)
        codes, weight = shrunk, next_weight
    return np.square(features - codes @ templates).sum(axis=1)


def cluster(features: FloatArray, num_clusters: int = NUM_CLUSTERS) -> NDArray[np.int64]:
    """K-means from farthest-point seeds: the same clusters for the same features, shape (N,)."""
    centers = [features[np.square(features - features.mean(axis=0)).sum(axis=1).argmin()]]
    while len(centers) < min(num_clusters, len(features)):
        distances = np.square(features[:, None] - np.stack(centers)[None]).sum(axis=2).min(axis=1)
        centers.append(features[distances.argmax()])
    means = np.stack(centers)
    for _ in range(CLUSTER_ROUNDS):
        nearest = np.square(features[:, None] - means[None]).sum(axis=2).argmin(axis=1)
        means = np.stack(
            [
                features[nearest == index].mean(axis=0) if (nearest == index).any() else mean
                for index, mean in enumerate(means)
            ]
        )
    return nearest


def propagated(errors: FloatArray, features: FloatArray, clusters: NDArray[np.int64]) -> FloatArray:
    """Errors mixed with the larger ones of similar segments of the same cluster.

    Args:
        errors: Reconstruction errors of shape (N,).
        features: Features of shape (N, D).
        clusters: Cluster of every segment, shape (N,).

    Returns:
        Array of shape (N,).

    Source: Li et al., ICCV 2013, Eqs. 6-7.
    """
    spread = 2 * features.var(axis=0).sum() + EPSILON
    result = errors.copy()
    for index in np.unique(clusters):
        members = np.flatnonzero(clusters == index)
        members = members[np.argsort(-errors[members], kind="stable")]
        for position in range(1, len(members)):
            before, here = members[:position], members[position]
            distances = np.square(features[before] - features[here]).sum(axis=1)
            weights = np.exp(-distances / spread)
            context = float((weights * result[before]).sum() / weights.sum())
            result[here] = CONTEXT_WEIGHT * context + (1 - CONTEXT_WEIGHT) * errors[here]
    return result


def centered_on_object(saliency: FloatArray) -> FloatArray:
    """The map times a Gaussian around its center of mass, scaled to [0, 1].

    Args:
        saliency: Map of shape (H, W), not negative.

    Source: Li et al., ICCV 2013, Eqs. 9-10.
    """
    height, width = saliency.shape
    total = saliency.sum() + EPSILON
    y, x = np.arange(height), np.arange(width)
    center_y = float((saliency.sum(axis=1) * y).sum() / total)
    center_x = float((saliency.sum(axis=0) * x).sum() / total)
    along_y = np.exp(-((y - center_y) ** 2) / (2 * (CENTER_SPREAD * height) ** 2))
    along_x = np.exp(-((x - center_x) ** 2) / (2 * (CENTER_SPREAD * width) ** 2))
    return unit_range(saliency * along_y[:, None] * along_x[None])


def posterior(prior: FloatArray, measured: FloatArray) -> FloatArray:
    """Probability of the object where one map is the prior and the other one is measured.

    Args:
        prior: Map of shape (H, W) in [0, 1]; above its mean lies the object.
        measured: Map of shape (H, W) in [0, 1] whose histograms in and out give the likelihood.

    Returns:
        Map of shape (H, W) in [0, 1].

    Source: Li et al., ICCV 2013, Eqs. 11-13.
    """
    is_object: BoolArray = prior > prior.mean()
    bins = np.minimum((measured * NUM_BINS).astype(int), NUM_BINS - 1)
    likelihoods = []
    for region in (is_object, ~is_object):
        counts = np.bincount(bins[region], minlength=NUM_BINS) + EPSILON
        likelihoods.append((counts / counts.sum())[bins])
    inside, outside = prior * likelihoods[0], (1 - prior) * likelihoods[1]
    return inside / (inside + outside + EPSILON)


def reconstruction_saliency(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Saliency by dense and sparse reconstruction from the border (DSR).

    Args:
        image: RGB image of shape (H, W, 3), uint8.

    Returns:
        Soft mask of shape (H, W) in [0, 1].

    Raises:
        ImportError: If scikit-image is not installed.

    Source: Li et al., ICCV 2013.
    """
    totals = np.zeros((2, *image.shape[:2]))
    weight_sum = np.full(image.shape[:2], EPSILON)
    pixels: FloatArray | None = None
    for count in SUPERPIXEL_COUNTS:
        graph = superpixel_graph(image, count)
        features = segment_features(image, graph)
        if pixels is None:
            pixels = pixel_features(image)
        clusters = cluster(features)
        templates = features[graph.on_boundary]
        # Pixels trust the scale whose segment resembles them most (Eq. 8).
        distances = np.linalg.norm(pixels - features[graph.labels], axis=-1)
        weights = 1 / (distances + 0.1)
        weight_sum += weights
        for index, errors in enumerate(
            (dense_errors(features, templates), sparse_errors(features, templates))
        ):
            smooth = unit_range(propagated(errors, features, clusters))
            totals[index] += weights * smooth[graph.labels]
    dense, sparse = (centered_on_object(unit_range(total / weight_sum)) for total in totals)
    return unit_range(posterior(dense, sparse) + posterior(sparse, dense)).astype(np.float32)


def pixel_features(image: NDArray[np.uint8]) -> FloatArray:
    """The features of `segment_features` for single pixels, shape (H, W, 8)."""
    from skimage.color import rgb2lab

    height, width = image.shape[:2]
    y, x = np.mgrid[0:height, 0:width]
    position = np.stack([(y + 0.5) / height, (x + 0.5) / width], axis=-1)
    return np.concatenate([rgb2lab(image) / 100.0, image / 255.0, position], axis=-1)
