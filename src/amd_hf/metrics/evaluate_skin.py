"""Base of the `evaluate.Metric` skins: masks are reduced as they come, nothing is stored.

The stock class turns every mask into nested Python lists and an Arrow file, gigabytes for one
pass over a video benchmark. Here `add` and `add_batch` go straight to an accumulator.
"""

import abc
import inspect
from collections.abc import Iterable
from typing import Any

import evaluate
from datasets import Features, Value
from datasets import List as ListFeature


class StreamingMetric(evaluate.Metric, abc.ABC):
    """An `evaluate.Metric` in constant memory; subclasses wrap one accumulator.

    Subclasses set `description` and `citation` and define `reset`, `update` and `result`. Keyword
    arguments of `evaluate.load` that the base class does not know reach `reset` as `options`.
    """

    description = ""
    citation = ""
    prediction_type = "float32"
    reference_type = "bool"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Takes what `evaluate.load` passes on; refuses several processes."""
        base_arguments = inspect.signature(evaluate.Metric.__init__).parameters
        unknown = [key for key in kwargs if key not in base_arguments]
        self.options = {key: kwargs.pop(key) for key in unknown}
        super().__init__(*args, **kwargs)
        if self.num_process != 1:
            raise ValueError(
                f"`num_process` must be 1 for {type(self).__name__}, got {self.num_process}; "
                "score each process's share and average the results."
            )
        self.num_added = 0
        self.reset(**self.options)

    def _info(self) -> evaluate.MetricInfo:
        """Description and element types, for the base class."""
        return evaluate.MetricInfo(
            description=self.description,
            citation=self.citation,
            inputs_description=(
                "\nArgs:\n    predictions: Iterable of arrays of shape (H, W)."
                "\n    references: Iterable of arrays of shape (H, W).\n"
            ),
            features=Features(
                {
                    "predictions": ListFeature(ListFeature(Value(self.prediction_type))),
                    "references": ListFeature(ListFeature(Value(self.reference_type))),
                }
            ),
        )

    @abc.abstractmethod
    def reset(self, **options: Any) -> None:
        """Empties the accumulator."""

    @abc.abstractmethod
    def update(self, prediction: Any, reference: Any) -> None:
        """Adds one pair of arrays of shape (H, W)."""

    @abc.abstractmethod
    def result(self) -> dict[str, Any]:
        """Scores of everything added."""

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """Adds one pair of arrays of shape (H, W)."""
        if kwargs:
            raise ValueError(
                f"`add` takes `prediction` and `reference`, got also {sorted(kwargs)}."
            )
        self.update(prediction, reference)
        self.num_added += 1

    def add_batch(
        self,
        *,
        predictions: Iterable[Any] | None = None,
        references: Iterable[Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Adds pairs of arrays of shape (H, W); both iterables must have the same length."""
        if predictions is None or references is None or kwargs:
            raise ValueError(
                "`add_batch` needs `predictions` and `references` and nothing else"
                f"{f', got {sorted(kwargs)}' if kwargs else ''}."
            )
        for prediction, reference in zip(predictions, references, strict=True):
            self.add(prediction=prediction, reference=reference)

    def compute(
        self,
        *,
        predictions: Iterable[Any] | None = None,
        references: Iterable[Any] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Scores of everything added (and of the pairs given here), then an empty accumulator."""
        if kwargs:
            raise ValueError(
                f"`compute` got unknown arguments {sorted(kwargs)}; "
                "pass options to `evaluate.load`."
            )
        if predictions is not None or references is not None:
            self.add_batch(predictions=predictions, references=references)
        if self.num_added == 0:
            raise ValueError("`compute` needs at least one mask, got none; call `add` first.")
        scores = self.result()
        self.num_added = 0
        self.reset(**self.options)
        return scores
