"""The report of a comparison of starts: a Markdown table, curves and pictures."""

from __future__ import annotations

import json
import statistics
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from amd_hf.image_processing_amd import AMDImageProcessor
from amd_hf.modeling_amd import AMDForSemanticSegmentation
from amd_hf.training.checkpointing import write_text_atomically
from amd_hf.training.finetuning_data import open_semantic_data
from amd_hf.training.finetuning_results import color_labels, spread_indices
from amd_hf.training.trackers import LOG_FILE
from amd_hf.visualization import contact_sheet
from amd_hf.visualization.palette import SEGMENT_COLORS

if TYPE_CHECKING:
    from amd_hf.training.comparison import ComparisonArguments

NUM_PICTURES = 4
WIDTH, HEIGHT, MARGIN = 640, 400, 56
NUM_TICKS = 5


def write_report(args: ComparisonArguments, report: dict[str, Any]) -> None:
    """Writes `comparison.md`, `curves.svg` and `predictions.png` into the folder of the comparison.

    Args:
        args: What was compared.
        report: Result of `summarize`.
    """
    folder = Path(args.options.output_dir)
    write_text_atomically(folder / "comparison.md", format_table(report))
    curves = {start.name: read_curves(args, start.name) for start in args.starts}
    write_text_atomically(folder / "curves.svg", draw_curves(curves))
    sheet = draw_starts(args)
    if sheet is not None:
        sheet.save(folder / "predictions.png")


def format_table(report: dict[str, Any]) -> str:
    """The Markdown table: our mean and standard deviation beside the published values.

    "gain / spread" is the gain over the first start in units of the larger standard deviation of
    the two.

    Args:
        report: Result of `summarize`.
    """
    options = report["options"]
    transferred = "backbone only" if options["reset_head"] else "backbone and head"
    lines = [
        "| start | seeds | mean IoU, last weights | best evaluation | gain | gain / spread "
        "| published (VOC 2012) |",
        "|---|---|---|---|---|---|---|",
    ]
    first = report["starts"][0]
    for row in report["starts"]:
        if row["mean"] is None:
            lines.append(f"| {row['name']} | 0 | - | - | - | - | {_number(row['published'], 1)} |")
            continue
        mean, deviation = 100 * row["mean"], row["standard_deviation"]
        spread = "" if deviation is None else f" ± {100 * deviation:.2f}"
        lines.append(
            f"| {row['name']} | {len(row['mean_iou'])} | {mean:.2f}{spread} "
            f"| {100 * row['best_mean']:.2f} "
            f"| {'-' if row is first else format(100 * row['gain'], '+.2f')} "
            f"| {'-' if row is first else _relative_gain(first, row)} "
            f"| {_number(row['published'], 1)} |"
        )
    lines += [
        "",
        f"{options['max_train_steps']} steps of {options['per_device_train_batch_size']} crops of "
        f"{options['crop_size']} per process, mode {options['mode']}, {transferred} transferred; "
        f"scored on {report['num_images']} images. Mean and standard deviation over seeds "
        f"{', '.join(map(str, report['seeds']))}. The "
        "published values are of VOC 2012 after 40,000 steps of batch 16 and stand beside ours for "
        "order, not for size.",
    ]
    if report["num_missing"]:
        lines.append(f"{report['num_missing']} runs are missing.")
    return "\n".join(lines) + "\n"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _relative_gain(first: dict[str, Any], row: dict[str, Any]) -> str:
    spreads = [row["standard_deviation"], first["standard_deviation"]]
    if None in spreads or max(spreads) == 0:
        return "-"
    return f"{row['gain'] / max(spreads):.1f}"


def read_curves(args: ComparisonArguments, name: str) -> dict[int, list[float]]:
    """Mean IoU of every seed by step, from the logs of the runs of a start."""
    curves: dict[int, list[float]] = {}
    for seed in args.seeds:
        path = Path(args.options.output_dir) / "runs" / name / f"seed_{seed}" / LOG_FILE
        if not path.is_file():
            continue
        # A run that was finished twice has scored its last step twice.
        scores = {}
        for line in map(json.loads, path.read_text().splitlines()):
            if line["split"] == "validation":
                scores[int(line["step"])] = float(line["mean_iou"])
        for step, score in scores.items():
            curves.setdefault(step, []).append(score)
    return dict(sorted(curves.items()))


def draw_curves(curves: dict[str, dict[int, list[float]]]) -> str:
    """An SVG picture of mean IoU over steps: a line per start, a band from lowest to highest seed.

    Args:
        curves: Scores in [0, 1] of all seeds, by step, by start.
    """
    steps = [step for curve in curves.values() for step in curve]
    scores = [value for curve in curves.values() for values in curve.values() for value in values]
    last, top = max(steps, default=1) or 1, max(scores, default=1.0) * 1.1 or 1.0

    def point(step: float, score: float) -> str:
        x = MARGIN + step / last * (WIDTH - 2 * MARGIN)
        return f"{x:.1f},{HEIGHT - MARGIN - score / top * (HEIGHT - 2 * MARGIN):.1f}"

    parts = [_axes(last, top)]
    for index, (name, curve) in enumerate(curves.items()):
        color = "#{:02x}{:02x}{:02x}".format(*SEGMENT_COLORS[index % len(SEGMENT_COLORS)])
        upper = [point(step, max(values)) for step, values in curve.items()]
        lower = [point(step, min(values)) for step, values in reversed(curve.items())]
        middle = [point(step, statistics.fmean(values)) for step, values in curve.items()]
        parts += [
            f'<polygon points="{" ".join(upper + lower)}" fill="{color}" opacity="0.2"/>',
            f'<polyline points="{" ".join(middle)}" fill="none" stroke="{color}" '
            'stroke-width="2"/>',
            f'<text x="{MARGIN + 12}" y="{MARGIN // 2 + 14 + 17 * index}" fill="{color}">'
            f"{escape(name)}</text>",
        ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13">'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>{"".join(parts)}</svg>\n'
    )


def _axes(last: float, top: float) -> str:
    bottom, right = HEIGHT - MARGIN, WIDTH - MARGIN
    marks = [
        f'<path d="M{MARGIN},{MARGIN // 2} V{bottom} H{right}" fill="none" stroke="#202124"/>',
        f'<text x="{right}" y="{HEIGHT - 12}" text-anchor="end">steps</text>',
        f'<text x="8" y="{MARGIN // 2 - 8}">mean IoU, % (band: lowest to highest seed)</text>',
    ]
    for tick in range(NUM_TICKS + 1):
        share = tick / NUM_TICKS
        x, y = MARGIN + share * (right - MARGIN), bottom - share * (bottom - MARGIN)
        marks.append(
            f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{share * last:.0f}</text>'
        )
        score = f"{100 * share * top:.0f}"
        marks.append(f'<text x="{MARGIN - 8}" y="{y + 4:.1f}" text-anchor="end">{score}</text>')
    return "".join(marks)


@torch.no_grad()
def draw_starts(args: ComparisonArguments) -> Any:
    """A contact sheet: image, mask, and the prediction of every start (its first finished seed).

    Returns:
        The picture; None where no run has ended.
    """
    folder = Path(args.options.output_dir) / "runs"
    models: dict[str, Path] = {}
    for start in args.starts:
        for seed in args.seeds:
            path = folder / start.name / f"seed_{seed}"
            if (path / "model.safetensors").is_file():
                models.setdefault(start.name, path)
    if not models:
        return None
    labels = json.loads((next(iter(models.values())) / "all_results.json").read_text())["labels"]
    images = open_semantic_data(args.options, known_labels=labels).validation
    chosen = spread_indices(len(images), NUM_PICTURES)
    masks = [images.load_mask(index) for index in chosen]
    rows: list[list[Any]] = [
        [np.asarray(images.load_image(index)), color_labels(mask)]
        for index, mask in zip(chosen, masks, strict=True)
    ]
    for path in models.values():
        model = AMDForSemanticSegmentation.from_pretrained(path).eval()
        processor = AMDImageProcessor.from_pretrained(path)
        for row, index, mask in zip(rows, chosen, masks, strict=True):
            inputs = processor(images.load_image(index), return_tensors="pt")
            (predicted,) = processor.post_process_semantic_segmentation(
                model(pixel_values=inputs["pixel_values"]), [(mask.shape[0], mask.shape[1])]
            )
            row.append(color_labels(predicted.numpy()))
    return contact_sheet(rows, column_captions=["image", "mask", *models])
