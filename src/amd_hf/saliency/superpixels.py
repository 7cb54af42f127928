"""Classical saliency over a graph of superpixels: robust background detection and Markov chains.

Both are written from their papers. Superpixels come from scikit-image (SLIC). Dense and sparse
reconstruction and hierarchical saliency have modules of their own.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amd_hf.metrics._arrays import BoolArray, FloatArray

NEEDS_SCIKIT_IMAGE = (
    "Saliency needs scikit-image, which comes with the extras eval, train and demo: "
    'pip install "amd-hf[eval]".'
)
NUM_SUPERPIXELS = 250
COMPACTNESS = 20.0
COLOR_SIGMA = 10.0  # Lab units
BOUNDARY_SIGMA = 1.0
SPATIAL_SIGMA = 0.25  # share of the image side
SMOOTHNESS_FLOOR = 0.1
# Weight of the background term against the foreground term; chosen on the development images.
BACKGROUND_WEIGHT = 5.0
CHAIN_SIGMA_SQUARED = 0.1  # colors scaled to [0, 1]
MAX_INDECISION = 2.0


@dataclass(frozen=True)
class SuperpixelGraph:
    """Superpixels of one image, N in number.

    Attributes:
        labels: Superpixel of every pixel, shape (H, W), from 0 to N - 1.
        colors: Mean Lab color, shape (N, 3).
        centers: Mean position (y, x) in shares of the image's sides, shape (N, 2).
        is_neighbor: Whether two superpixels touch, shape (N, N), symmetric, False on the diagonal.
        on_boundary: Whether a superpixel touches the border of the image, shape (N,).
    """

    labels: NDArray[np.int64]
    colors: FloatArray
    centers: FloatArray
    is_neighbor: BoolArray
    on_boundary: BoolArray

    @property
    def color_distances(self) -> FloatArray:
        """Euclidean distances of the mean colors, shape (N, N)."""
        return np.linalg.norm(self.colors[:, None] - self.colors[None], axis=-1)

    def paint(self, values: FloatArray) -> NDArray[np.float32]:
        """The values of the superpixels at every pixel, shape (H, W)."""
        return values[self.labels].astype(np.float32)


def superpixel_graph(
    image: NDArray[np.uint8], num_superpixels: int = NUM_SUPERPIXELS
) -> SuperpixelGraph:
    """SLIC superpixels and who touches whom.

    Args:
        image: RGB image of shape (H, W, 3), uint8.
        num_superpixels: Approximate number.

    Returns:
        The graph.

    Raises:
        ImportError: If scikit-image is not installed.
    """
    try:
        from skimage.color import rgb2lab
        from skimage.segmentation import slic
    except ImportError as error:
        raise ImportError(NEEDS_SCIKIT_IMAGE) from error
    lab = rgb2lab(image)
    found = slic(image, n_segments=num_superpixels, compactness=COMPACTNESS, start_label=0)
    labels = np.unique(found, return_inverse=True)[1].reshape(found.shape).astype(np.int64)
    height, width = labels.shape
    count = int(labels.max()) + 1
    y, x = np.mgrid[0:height, 0:width]
    is_neighbor = np.zeros((count, count), dtype=bool)
    for first, second in ((labels[:, :-1], labels[:, 1:]), (labels[:-1], labels[1:])):
        is_neighbor[first.ravel(), second.ravel()] = True
    is_neighbor |= is_neighbor.T
    np.fill_diagonal(is_neighbor, False)
    border = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    on_boundary = np.zeros(count, dtype=bool)
    on_boundary[border] = True
    return SuperpixelGraph(
        labels=labels,
        colors=region_means(labels, lab),
        centers=region_means(labels, np.stack([(y + 0.5) / height, (x + 0.5) / width], axis=-1)),
        is_neighbor=is_neighbor,
        on_boundary=on_boundary,
    )


def region_means(labels: NDArray[np.int64], values: NDArray[Any]) -> FloatArray:
    """Means of pixel values over regions.

    Args:
        labels: Region of every pixel, shape (H, W), from 0 to N - 1, none of them empty.
        values: Values of shape (H, W, C).

    Returns:
        Array of shape (N, C).
    """
    flat = labels.ravel()
    sizes = np.bincount(flat)
    channels = np.moveaxis(values, -1, 0).reshape(values.shape[-1], -1)
    return np.stack([np.bincount(flat, channel) / sizes for channel in channels], axis=1)


def geodesic_distances(weights: FloatArray, is_edge: BoolArray) -> FloatArray:
    """Lengths of the shortest paths between all pairs (Floyd and Warshall).

    Args:
        weights: Edge lengths of shape (N, N).
        is_edge: Where there is an edge, shape (N, N), symmetric.

    Returns:
        Array of shape (N, N); infinity where there is no path.
    """
    distances = np.where(is_edge, weights, np.inf)
    np.fill_diagonal(distances, 0.0)
    for node in range(len(distances)):
        np.minimum(distances, distances[:, node, None] + distances[None, node], out=distances)
    return distances


def unit_range(values: NDArray[np.floating]) -> FloatArray:
    """Values scaled to span [0, 1]; zeros where they are all equal."""
    low, high = float(values.min()), float(values.max())
    if high <= low:
        return np.zeros(values.shape)
    return ((values - low) / (high - low)).astype(np.float64)


def background_weights(graph: SuperpixelGraph) -> FloatArray:
    """Probability of background from boundary connectivity, shape (N,).

    Source: Zhu et al., Saliency optimization from robust background detection, CVPR 2014,
    Eqs. 2-5 and 7.
    """
    # Boundary superpixels count as neighbors, so that a background cut in two stays one region.
    edges = graph.is_neighbor | (graph.on_boundary[:, None] & graph.on_boundary[None])
    geodesic = geodesic_distances(graph.color_distances, edges)
    closeness = np.exp(-(geodesic**2) / (2 * COLOR_SIGMA**2))
    area = closeness.sum(axis=1)
    boundary_length = closeness[:, graph.on_boundary].sum(axis=1)
    connectivity = boundary_length / np.sqrt(area)
    return 1 - np.exp(-(connectivity**2) / (2 * BOUNDARY_SIGMA**2))


def robust_background_saliency(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Saliency by robust background detection (RBD), with its final optimization.

    Args:
        image: RGB image of shape (H, W, 3), uint8.

    Returns:
        Soft mask of shape (H, W) in [0, 1].

    Raises:
        ImportError: If scikit-image is not installed.

    Source: Zhu et al., CVPR 2014, Eqs. 2-10.
    """
    graph = superpixel_graph(image)
    colors = graph.color_distances
    background = background_weights(graph)
    spatial = np.linalg.norm(graph.centers[:, None] - graph.centers[None], axis=-1)
    near = np.exp(-(spatial**2) / (2 * SPATIAL_SIGMA**2))
    foreground = unit_range((colors * near * background[None]).sum(axis=1))
    smoothness = np.exp(-(colors**2) / (2 * COLOR_SIGMA**2)) + SMOOTHNESS_FLOOR
    smoothness = np.where(graph.is_neighbor, smoothness, 0.0)
    laplacian = np.diag(smoothness.sum(axis=1)) - smoothness
    system = np.diag(BACKGROUND_WEIGHT * background + foreground) + laplacian
    return graph.paint(unit_range(np.linalg.solve(system, foreground)))


def markov_chain_saliency(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Saliency as the time until a random walk is absorbed at the border (MC).

    Where the map is undecided (many values in the middle), steps count less in large smooth
    regions: each node weighs as the reciprocal of its share in the equilibrium of the walk.

    Args:
        image: RGB image of shape (H, W, 3), uint8.

    Returns:
        Soft mask of shape (H, W) in [0, 1].

    Raises:
        ImportError: If scikit-image is not installed.

    Source: Jiang et al., Saliency detection via absorbing Markov chain, ICCV 2013, Eqs. 2-8.
    """
    graph = superpixel_graph(image)
    scaled = graph.colors / max(float(np.ptp(graph.colors)), 1e-6)
    distances = np.linalg.norm(scaled[:, None] - scaled[None], axis=-1)
    affinity = np.exp(-distances / CHAIN_SIGMA_SQUARED)
    # Transient nodes: neighbors, their neighbors, and the boundary among itself.
    adjacent = graph.is_neighbor
    edges = adjacent | ((adjacent.astype(int) @ adjacent.astype(int)) > 0)
    edges |= graph.on_boundary[:, None] & graph.on_boundary[None]
    np.fill_diagonal(edges, False)
    transient = np.where(edges, affinity, 0.0)
    np.fill_diagonal(transient, 1.0)
    # Absorbing copies of the boundary are reached from whatever touches the original.
    to_absorbing = affinity * (edges | np.eye(len(edges), dtype=bool))
    to_absorbing = to_absorbing[:, graph.on_boundary]
    total = transient.sum(axis=1) + to_absorbing.sum(axis=1)
    transition = transient / total[:, None]
    system = np.eye(len(transition)) - transition
    saliency = unit_range(np.linalg.solve(system, np.ones(len(transition))))
    if indecision(saliency) >= MAX_INDECISION:
        equilibrium = transient.sum(axis=1) / transient.sum()
        weights = 1 / equilibrium
        saliency = unit_range(np.linalg.solve(system, weights / weights.sum()))
    return graph.paint(saliency)


def indecision(saliency: FloatArray) -> float:
    """How much of a saliency map lies in the middle of its range: 1 (ends only) to 5.

    Args:
        saliency: Values in [0, 1].

    Returns:
        Mean over the values of min(b, 11 - b) for their bin b = 1..10.

    Source: Jiang et al., ICCV 2013, Sec. 4.3.
    """
    bins = np.minimum((saliency * 10).astype(int), 9) + 1
    return float(np.minimum(bins, 11 - bins).mean())
