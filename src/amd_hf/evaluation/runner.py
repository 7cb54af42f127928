"""Runs a benchmark: predictors in, one JSON-ready dictionary out."""

import logging
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from transformers.utils.logging import tqdm

from amd_hf._version import __version__
from amd_hf.data.annotations import AnnotatedFrame, AnnotatedSequence, Benchmark
from amd_hf.data.benchmarks import open_benchmark
from amd_hf.data.ranks import Ranks
from amd_hf.evaluation.baselines import make_baseline
from amd_hf.evaluation.contact_sheet import save_contact_sheet, thumbnail
from amd_hf.evaluation.controls import CenterEllipsePredictor, random_model
from amd_hf.evaluation.predictors import ModelPredictor, Prediction, Predictor
from amd_hf.evaluation.progress import EvaluationProgress, fingerprint
from amd_hf.evaluation.scoring import (
    DECIDING,
    ScoredRows,
    oracle_segment,
    score_image,
    score_video,
    summarize,
)
from amd_hf.evaluation.settings import EvaluationSettings
from amd_hf.image_processing_amd import AMDImageProcessor
from amd_hf.modeling_amd import AMDModel
from amd_hf.whole_files import written_aside

logger = logging.getLogger(__name__)

SAVE_EVERY_IMAGES = 100
MAIN_PASS = "model"
RECORDED_PACKAGES = ("torch", "transformers", "numpy", "pillow")


def evaluate_benchmark(
    model: AMDModel,
    processor: AMDImageProcessor,
    benchmark: str | Benchmark,
    data_dir: str | Path | None = None,
    *,
    settings: EvaluationSettings | None = None,
    strict: bool = False,
    controls: bool = False,
    baselines: Sequence[str] = (),
    resume_file: str | Path | None = None,
    contact_sheet: str | Path | None = None,
    model_name: str | None = None,
    progress: bool = True,
    ranks: Ranks | None = None,
    **overrides: Any,
) -> dict[str, Any]:
    """Scores a model on one benchmark.

    With `ranks`, every process scores its share of the sequences or images, and the main one puts
    the rows together. The result is that of one process that computes with as many threads.

    Args:
        model: The model; it is not changed. An `AMDForSemanticSegmentation` for `voc2012`.
        processor: Its image processor.
        benchmark: Name of a benchmark, or one already opened.
        data_dir: Folder of the data set; needed with a name.
        settings: Settings of the evaluation; None takes the defaults.
        strict: Whether an incomplete data set is an error.
        controls: Whether to score the center ellipse and a random-init model, too.
        baselines: Names of classical baselines to score, too (`rbd`, `hs`, `mc`, `dsr`,
            `motion`).
        resume_file: State file of an interrupted evaluation; removed at the end.
        contact_sheet: Picture file of best, median and worst results to write.
        model_name: Name of the model for the report.
        progress: Whether to show progress bars.
        ranks: The processes that score together; None is this one alone.
        overrides: Fields of `EvaluationSettings` to set.

    Returns:
        What `amd-hf evaluate` writes as JSON: `benchmark`, `model`, `settings`, `versions`, counts,
        `selected`, `oracle`, `best_of_k`, `intervals`, `rows`, and `controls` and `baselines` where
        they were asked for. Scores lie in [0, 1]. Empty in processes other than the main one.

    Raises:
        ValueError: If a setting, the benchmark or the data is wrong.
        RuntimeError: If another of the processes ended early.
    """
    ranks = ranks if ranks is not None else Ranks()
    settings = EvaluationSettings(**{**(settings or EvaluationSettings()).__dict__, **overrides})
    opened = _opened(benchmark, data_dir, settings, strict)
    started = time.monotonic()
    result = _description(model, processor, opened, settings, model_name)
    if opened.kind == "semantic":
        from amd_hf.evaluation.semantic import evaluate_semantic

        result |= evaluate_semantic(model, processor, opened, settings, progress, ranks)
    else:
        state = EvaluationProgress(
            None if resume_file is None else Path(resume_file),
            {key: result[key] for key in ("benchmark", "settings", "model_fingerprint")},
            ranks.rank,
        )
        run = _Run(opened, settings, state, progress, contact_sheet is not None, ranks)
        # Made before the first forward pass, so that a wrong name costs no time.
        others = {name: make_baseline(name, opened.kind) for name in baselines}
        scored = run.score(MAIN_PASS, ModelPredictor(model, processor, settings))
        result |= run.summary(scored)
        if controls:
            result["controls"] = _controls(run, model, processor)
        if others:
            result["baselines"] = {
                name: run.brief(run.score(name, predictor)) for name, predictor in others.items()
            }
        if contact_sheet is not None and ranks.is_main:
            with written_aside(Path(contact_sheet)) as partial:
                measure = DECIDING[opened.kind]
                save_contact_sheet(partial, scored.rows, scored.thumbnails, measure)
        if ranks.is_main:
            state.finish()
    if not ranks.is_main:
        return {}
    result["seconds"] = round(time.monotonic() - started, 1)
    return result


def _opened(
    benchmark: str | Benchmark,
    data_dir: str | Path | None,
    settings: EvaluationSettings,
    strict: bool,
) -> Benchmark:
    """The benchmark, opened where it came as a name."""
    if isinstance(benchmark, Benchmark):
        return benchmark
    if data_dir is None:
        raise ValueError(f"`data_dir` must be the folder of {benchmark}, got None.")
    return open_benchmark(benchmark, data_dir, sequences=settings.sequences, strict=strict)


def _description(
    model: AMDModel,
    processor: AMDImageProcessor,
    benchmark: Benchmark,
    settings: EvaluationSettings,
    model_name: str | None,
) -> dict[str, Any]:
    """What was evaluated, on what, with what."""
    return {
        "benchmark": benchmark.name,
        "title": benchmark.title,
        "kind": benchmark.kind,
        "protocol": _protocol(settings),
        "model": model_name or model.config.name_or_path or type(model).__name__,
        "model_fingerprint": fingerprint(model.state_dict().items()),
        "num_parameters": sum(weight.numel() for weight in model.parameters()),
        "settings": settings.to_dict() | {"processor_size": dict(processor.size)},
        "versions": _versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "num_expected": benchmark.num_expected,
        "num_found": benchmark.num_found,
        "num_without_mask": benchmark.num_without_mask,
        "num_expected_sequences": benchmark.num_expected_sequences,
        "num_sequences": len(benchmark.sequences),
        "missing": list(benchmark.missing),
    }


def _protocol(settings: EvaluationSettings) -> str:
    """The protocol in words; another objective than the published one is named."""
    if not settings.adapt_steps:
        return "per-image"
    objective = settings.adapt_settings.get("objective")
    named = "" if objective is None else f", {objective}"
    return f"per-video, {settings.adapt_steps} steps{named}"


def _versions() -> dict[str, str]:
    """Versions of what computes the scores, and the commit where the package is a checkout."""
    versions = {"amd_hf": __version__, "python": platform.python_version()}
    for package in RECORDED_PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "unknown"
    source = Path(__file__).resolve().parents[3]
    if (source / ".git").exists():
        try:
            commit = subprocess.run(
                ["git", "-C", str(source), "rev-parse", "--short", "HEAD"],
                capture_output=True,
                text=True,
                timeout=10,
                check=True,
            )
            versions["commit"] = commit.stdout.strip()
        except (OSError, subprocess.SubprocessError) as error:
            logger.debug("No commit recorded: %s", error)
    return versions


class _Run:
    """One benchmark with its settings; scores any number of predictors on it."""

    def __init__(
        self,
        benchmark: Benchmark,
        settings: EvaluationSettings,
        state: EvaluationProgress,
        progress: bool,
        keep_thumbnails: bool,
        ranks: Ranks,
    ) -> None:
        """Takes what every pass shares."""
        self.ranks = ranks
        self.benchmark = benchmark
        self.settings = settings
        self.state = state
        self.progress = progress
        self.keep_thumbnails = keep_thumbnails
        self.units = self._units()

    def _units(self) -> list[tuple[AnnotatedSequence, list[AnnotatedFrame]]]:
        """Sequences and their frames to score, after stride and limit."""
        stride, limit = self.settings.stride, self.settings.limit_frames
        sequences = [sequence for sequence in self.benchmark.sequences if sequence.annotated]
        if self.benchmark.kind == "video":
            return [
                (sequence, list(sequence.annotated[::stride][:limit])) for sequence in sequences
            ]
        return [(sequence, list(sequence.annotated)) for sequence in sequences[::stride][:limit]]

    def score(self, name: str, predictor: Predictor) -> ScoredRows:
        """Rows of one predictor; those of an interrupted run are not computed again.

        They are complete in the main process and those of the share in others.
        """
        scored = self.state.of(name)
        done = {row["name"] for row in scored.rows}
        if self.keep_thumbnails and name == MAIN_PASS:
            done &= scored.thumbnails.keys()  # the interrupted run may have made no pictures
        mine = self.ranks.share(self.units)
        waiting = [unit for unit in mine if unit[0].name not in done]
        save_every = 1 if self.benchmark.kind == "video" else SAVE_EVERY_IMAGES
        bar = tqdm(
            waiting,
            desc=f"{self.benchmark.title}: {name}",
            unit="video" if self.benchmark.kind == "video" else "image",
            disable=not self.progress,
        )
        try:
            for index, (sequence, frames) in enumerate(bar):
                self._score_unit(scored, name, predictor, sequence, frames)
                if (index + 1) % save_every == 0:
                    self.state.save()
        except BaseException:
            self.state.save()
            raise
        self.state.save()
        return self._together(scored)

    def _together(self, scored: ScoredRows) -> ScoredRows:
        """The rows of all processes in the main one, in the order of the benchmark."""
        names = [sequence.name for sequence, _ in self.units]
        if [row["name"] for row in scored.rows] == names and self.ranks.count == 1:
            return scored
        share = scored.in_order(self.ranks.share(names))
        shares = self.ranks.gather(share)
        if shares is None:
            return share
        complete = ScoredRows()
        for part in shares:
            complete.add(part)
        return complete.in_order(names)

    def _score_unit(
        self,
        scored: ScoredRows,
        name: str,
        predictor: Predictor,
        sequence: AnnotatedSequence,
        frames: Sequence[AnnotatedFrame],
    ) -> None:
        """Adds the row of one sequence or image."""
        predictions = predictor.predict(sequence, frames)
        threshold, selected = self.settings.threshold, predictor.selected
        pictures: dict[str, bytes] = {}
        if self.keep_thumbnails and name == MAIN_PASS:
            middle = frames[len(frames) // 2].name
            predictions = _watched(
                predictions,
                lambda prediction: (
                    pictures.update({sequence.name: thumbnail(prediction, selected, threshold)})
                    if prediction.frame.name == middle
                    else None
                ),
            )
        if self.benchmark.kind == "video":
            scored.rows.append(score_video(sequence.name, predictions, selected, threshold))
        else:
            (prediction,) = predictions
            row, curves = score_image(
                sequence.name, prediction, selected, threshold, self.settings.stretch
            )
            scored.rows.append(row)
            scored.curves.append(curves)
        scored.thumbnails.update(pictures)

    def summary(self, scored: ScoredRows) -> dict[str, Any]:
        """Scores of the selected segment, of the oracle and of the best segment per row.

        Empty in processes other than the main one.
        """
        if not self.ranks.is_main:
            return {}
        # Read back from a row, which also holds after a resume.
        kind, selected = self.benchmark.kind, int(scored.rows[0]["selected_segment"])
        oracle = oracle_segment(scored.rows, kind)
        resamples, seed = self.settings.num_bootstrap, self.settings.seed
        choices = {"selected": selected, "oracle": oracle, "best_of_k": None}
        result: dict[str, Any] = {
            "num_scored": sum(row.get("num_frames", 1) for row in scored.rows),
            "is_subset": self.settings.scores_a_part or not self.benchmark.is_complete,
            "selected_segment": selected,
            "oracle_segment": oracle,
            "intervals": {},
        }
        for name, choice in choices.items():
            scores, intervals = summarize(scored, kind, choice, resamples, seed)
            result[name] = scores
            result["intervals"][name] = intervals
        result["rows"] = scored.rows
        return result

    def brief(self, scored: ScoredRows) -> dict[str, Any]:
        """The summary without rows, for controls and baselines; empty but in the main process."""
        if not self.ranks.is_main:
            return {}
        summary = self.summary(scored)
        keys = ["selected", "oracle", "best_of_k", "intervals", "selected_segment"]
        num_segments = len(scored.rows[0]["per_segment"][DECIDING[self.benchmark.kind]])
        if num_segments == 1:
            keys = ["selected", "intervals"]
            summary["intervals"] = {"selected": summary["intervals"]["selected"]}
        return {key: summary[key] for key in keys}


def _watched(
    predictions: Iterator[Prediction], look: Callable[[Prediction], None]
) -> Iterator[Prediction]:
    """The same predictions, each shown to `look` on its way."""
    for prediction in predictions:
        look(prediction)
        yield prediction


def _controls(run: _Run, model: AMDModel, processor: AMDImageProcessor) -> dict[str, Any]:
    """Scores of the center ellipse and of an untrained model, which is never adapted."""
    unadapted = EvaluationSettings(**{**run.settings.__dict__, "adapt_steps": 0, "refinements": ()})
    untrained = random_model(model, run.settings.seed)
    return {
        "center_ellipse": run.brief(run.score("center ellipse", CenterEllipsePredictor())),
        "random_init": run.brief(
            run.score("random init", ModelPredictor(untrained, processor, unadapted))
        ),
    }
