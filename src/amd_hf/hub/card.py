"""Model cards: a template, filled with results and provenance that programs wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from amd_hf import AMDForSemanticSegmentation, AMDPreTrainedModel
from amd_hf.evaluation.report import load_result, render_report
from amd_hf.hub.pictures import CardPicture

PROVENANCE_FILE = "provenance.json"
PROVENANCE_KEYS = ("pretrained_inputs", "ground_truth", "sources", "training", "weights_license")
SOURCE_KEYS = ("name", "videos", "clips", "terms")
# Metric shown first for each kind of benchmark: key, the Hub's metric type, and its name.
HEADLINES = {
    "video": (("J", "mean_iou", "Region similarity J"), ("F", "f1", "Boundary accuracy F")),
    "image": (("max_f_beta", "f1", "Maximum F-beta"), ("mae", "mae", "Mean absolute error")),
    "semantic": (("mean_iou", "mean_iou", "Mean IoU"),),
}
TAGS = (
    "amd",
    "unsupervised",
    "self-supervised",
    "zero-shot-object-segmentation",
    "video-object-segmentation",
    "salient-object-detection",
)


def fill_model_card(
    template: str | Path,
    *,
    repo_id: str,
    model: AMDPreTrainedModel,
    results: Sequence[Mapping[str, Any]] = (),
    provenance: Mapping[str, Any],
    pictures: Sequence[CardPicture] = (),
) -> str:
    """Returns the text of a model card with valid Hub metadata, `model-index` included.

    Args:
        template: Jinja template file of the card.
        repo_id: Where the model is going, `"organization/name"`.
        model: The model; its size and settings are stated.
        results: Results of `amd-hf evaluate`; the card says so where there are none.
        provenance: What the weights were made from; see `read_provenance`.
        pictures: Those of results stand at the top, those of failures under "Limitations".

    Raises:
        ValueError: If the template is missing or leaves a place unfilled.
    """
    template = Path(template)
    if not template.is_file():
        raise ValueError(f"`template` must be the card's template file, got {template}.")
    card = ModelCard.from_template(
        _metadata(repo_id, model, results, provenance),
        template_path=str(template),
        repo_id=repo_id,
        model_name=repo_id.split("/")[-1],
        model_facts=_model_facts(model),
        provenance=provenance,
        results_table=render_report([dict(result) for result in results]) if results else "",
        pictures=[picture for picture in pictures if not picture.shows_failures],
        failure_pictures=[picture for picture in pictures if picture.shows_failures],
    )
    text = str(card)
    if "{{" in text or "{%" in text:
        raise ValueError(f"`template` {template} leaves a place unfilled; correct the template.")
    return text


def read_provenance(folder: str | Path) -> dict[str, Any]:
    """Returns what the weights in `folder` were made from, as `provenance.json` there tells.

    The file holds `pretrained_inputs` and `ground_truth` (texts, "none" where none was used),
    `sources` (list of `name`, `videos`, `clips`, `terms`), `training` (texts by name, such as
    steps and hardware), `weights_license` (`id`, and `name` and `link` for "other"), and may hold
    `reproduce` (shell commands).

    Args:
        folder: Checkpoint folder.

    Raises:
        ValueError: If the file or an entry is missing: a card without provenance is not written.
    """
    file = Path(folder) / PROVENANCE_FILE
    if not file.is_file():
        raise ValueError(
            f"{file} is missing; write there what the weights were made from "
            f"({', '.join(PROVENANCE_KEYS)})."
        )
    try:
        provenance: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} must be JSON: {error}.") from error
    if not isinstance(provenance, dict):
        raise ValueError(f"{file} must hold a JSON object, got {type(provenance).__name__}.")
    if missing := [key for key in PROVENANCE_KEYS if key not in provenance]:
        raise ValueError(f"{file} must hold {', '.join(PROVENANCE_KEYS)}; it lacks {missing[0]!r}.")
    sources = provenance["sources"]
    if not isinstance(sources, list) or not all(isinstance(source, dict) for source in sources):
        raise ValueError(f"`sources` in {file} must be a list of JSON objects, got {sources!r}.")
    for source in sources:
        if missing := [key for key in SOURCE_KEYS if key not in source]:
            raise ValueError(f"Every source in {file} needs {missing[0]!r}, got {source}.")
    return provenance


def read_results(files: Sequence[str | Path]) -> list[dict[str, Any]]:
    """Returns the results in files that `amd-hf evaluate --output` wrote.

    Args:
        files: JSON files.

    Raises:
        ValueError: If a file is missing or holds no result.
    """
    return [load_result(Path(file)) for file in files]


def _metadata(
    repo_id: str,
    model: AMDPreTrainedModel,
    results: Sequence[Mapping[str, Any]],
    provenance: Mapping[str, Any],
) -> ModelCardData:
    license_facts = provenance["weights_license"]
    is_semantic = isinstance(model, AMDForSemanticSegmentation)
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="image-segmentation",
        license=license_facts["id"],
        license_name=license_facts.get("name"),
        license_link=license_facts.get("link"),
        tags=[*TAGS, *(["semantic-segmentation"] if is_semantic else [])],
        metrics=sorted({entry.metric_type for entry in _eval_results(results)}) or None,
        model_name=repo_id.split("/")[-1],
        eval_results=_eval_results(results) or None,
    )


def _eval_results(results: Sequence[Mapping[str, Any]]) -> list[EvalResult]:
    """Entries of `model-index`: only the score of the segment that was chosen without labels."""
    return [
        EvalResult(
            task_type="image-segmentation",
            task_name=f"Unsupervised object segmentation ({result['protocol']})",
            dataset_type=result["benchmark"],
            dataset_name=result["title"] + (" (subset)" if result.get("is_subset") else ""),
            # Results of one data set and configuration would be merged into one entry.
            dataset_config=result["protocol"],
            metric_type=metric_type,
            metric_name=name,
            metric_value=round(float(result["selected"][key]), 4),
        )
        for result in results
        for key, metric_type, name in HEADLINES[result["kind"]]
        if key in (result["selected"] or {})
    ]


def _model_facts(model: AMDPreTrainedModel) -> list[tuple[str, str]]:
    """Name and value of what distinguishes this model."""
    config = model.config
    count = sum(weight.numel() for weight in model.parameters())
    appearance = sum(
        weight.numel() for name, weight in model.named_parameters() if "appearance" in name
    )
    height, width = config.motion_size
    facts = [
        ("parameters", f"{count / 1e6:.1f} M, of which {appearance / 1e6:.1f} M run per image"),
        ("segments K", str(config.num_segments)),
        ("motion size", f"{height} x {width}"),
    ]
    if not isinstance(model, AMDForSemanticSegmentation):
        confidence = config.object_segment_confidence
        chosen = (
            "set by hand" if confidence is None else f"chosen without labels ({confidence:.2f})"
        )
        facts.append(("object segment", f"{config.object_segment}, {chosen}"))
    return facts
