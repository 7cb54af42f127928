"""F-beta as an `evaluate` metric: `evaluate.load(".../f_beta")`."""

from typing import Any

from amd_hf.metrics.evaluate_skin import StreamingMetric
from amd_hf.metrics.saliency import BETA_SQUARED, FBetaScores


class FBeta(StreamingMetric):
    """Maximum, mean and adaptive F-beta of soft masks; option `beta_squared`."""

    description = "F-beta (beta^2 = 0.3) of soft masks in [0, 1] at 256 thresholds."
    citation = "Achanta et al., Frequency-tuned salient region detection, CVPR 2009."

    def reset(self, beta_squared: float = BETA_SQUARED, **options: Any) -> None:
        """Starts a new data set."""
        if options:
            raise ValueError(f"`f_beta` takes `beta_squared` only, got {sorted(options)}.")
        self.scores = FBetaScores(beta_squared)

    def update(self, prediction: Any, reference: Any) -> None:
        """Adds one image."""
        self.scores.update(prediction, reference)

    def result(self) -> dict[str, Any]:
        """`max_f_beta`, `mean_f_beta` and `adaptive_f_beta`."""
        return dict(self.scores.compute())
