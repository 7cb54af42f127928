"""Benchmark metrics as plain numpy functions and constant-memory accumulators.

Each metric also has a thin `evaluate.Metric` skin in the folder of its name, for
`evaluate.load("<path of this folder>/region_similarity")` and so on.
"""

from amd_hf.metrics.alignment import adaptive_e_measure, e_measure_curve
from amd_hf.metrics.boundary import boundary_accuracies, boundary_accuracy, mask_boundary
from amd_hf.metrics.region import (
    PooledIoU,
    SequenceStatistics,
    region_similarity,
    sequence_statistics,
)
from amd_hf.metrics.saliency import (
    FBetaScores,
    adaptive_f_beta,
    f_beta_curve,
    mean_absolute_error,
    stretch_to_unit_range,
)
from amd_hf.metrics.semantic import ConfusionMatrix
from amd_hf.metrics.stability import TemporalStability, temporal_stability
from amd_hf.metrics.structure import s_measure

__all__ = [
    "ConfusionMatrix",
    "FBetaScores",
    "PooledIoU",
    "SequenceStatistics",
    "TemporalStability",
    "adaptive_e_measure",
    "adaptive_f_beta",
    "boundary_accuracies",
    "boundary_accuracy",
    "e_measure_curve",
    "f_beta_curve",
    "mask_boundary",
    "mean_absolute_error",
    "region_similarity",
    "s_measure",
    "sequence_statistics",
    "stretch_to_unit_range",
    "temporal_stability",
]
