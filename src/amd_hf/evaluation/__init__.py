"""Zero-shot evaluation: named protocols per benchmark, controls, baselines and reports."""

from amd_hf.evaluation.bootstrap import bootstrap_interval
from amd_hf.evaluation.runner import evaluate_benchmark
from amd_hf.evaluation.settings import REFINEMENTS, EvaluationSettings

__all__ = ["REFINEMENTS", "EvaluationSettings", "bootstrap_interval", "evaluate_benchmark"]
