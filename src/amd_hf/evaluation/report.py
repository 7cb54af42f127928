"""Results as text: a few lines for the terminal, Markdown tables for README and model card."""

import json
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

HEADLINES = {
    "video": ("J", "F", "J_recall", "J_decay", "J_frames", "pooled_iou", "temporal_stability"),
    "image": ("max_f_beta", "mean_f_beta", "adaptive_f_beta", "mae", "s_measure", "iou"),
    "semantic": ("mean_iou", "mean_accuracy", "pixel_accuracy"),
}
# Columns of the Markdown tables: measure and heading.
COLUMNS = {
    "video": (("J", "J"), ("F", "F"), ("J_recall", "J recall"), ("J_decay", "J decay")),
    "image": (
        ("max_f_beta", "max F"),
        ("mean_f_beta", "mean F"),
        ("adaptive_f_beta", "adaptive F"),
        ("mae", "MAE"),
        ("s_measure", "S"),
        ("iou", "IoU"),
    ),
    "semantic": (("mean_iou", "mIoU"), ("pixel_accuracy", "pixel acc.")),
}
# Errors are printed as they are, everything else in percent.
PLAIN_MEASURES = ("mae",)
CHOICES = (
    ("selected", "selected segment"),
    ("oracle", "oracle: best segment of the set"),
    ("best_of_k", "oracle: best segment per row"),
)
# The same in rows that share their scores with the one before.
SHORT_NAMES = {"oracle": "oracle of the set", "best_of_k": "oracle per row"}
CONTROL_NAMES = {
    "center_ellipse": "control: center ellipse",
    "random_init": "control: random initialization",
    "rbd": "baseline: RBD (superpixels)",
    "hs": "baseline: HS (region tree)",
    "mc": "baseline: MC (superpixels)",
    "dsr": "baseline: DSR (superpixels)",
    "motion": "baseline: motion (DIS flow, Otsu)",
}
# Objectives of the adaptation that use no classical flow; None is the published one.
WITHOUT_FLOW = (None, "segment_flow", "pixel_flow")
REQUIRED_KEYS = (
    *("benchmark", "title", "kind", "protocol", "model", "selected", "rows", "versions"),
    *("settings", "num_expected", "num_found", "num_without_mask", "num_scored", "is_subset"),
    *("created", "seconds"),
)
F_BETA_NOTE = (
    "F uses beta^2 = 0.3. The AMD paper does not say at which threshold its F is taken, and its "
    "saliency evaluation was not released: its numbers stand under adaptive F (twice the mean of "
    "the map), which needs no threshold chosen with the references; max F is printed beside it."
)
BEGIN_MARK, END_MARK = "<!-- results: begin -->", "<!-- results: end -->"


def published_results() -> dict[str, Any]:
    """The table of published numbers, as printed by their authors (percent)."""
    text = files("amd_hf.evaluation").joinpath("published_results.json").read_text("utf-8")
    return json.loads(text)


def summary_text(result: dict[str, Any]) -> str:
    """A result in a few lines for the terminal.

    Args:
        result: What `evaluate_benchmark` returned.

    Returns:
        Lines of text, scores in percent.
    """
    part = " (subset)" if result["is_subset"] else ""
    lines = [
        f"{result['title']}{part}: {result['num_scored']} scored, {result['num_found']} of "
        f"{result['num_expected']} found, {result['num_without_mask']} without a mask",
        f"model {result['model']}, {result['protocol']}, {result['seconds']:.0f} s",
    ]
    measures = HEADLINES[result["kind"]]
    entries = [(key, result.get(key)) for key in ("selected", "oracle", "best_of_k")]
    for group in ("controls", "baselines"):
        entries += [(name, entry["selected"]) for name, entry in result.get(group, {}).items()]
    width = max(len(name) for name, _ in entries) + 2
    lines.append(" " * width + "".join(f"{measure:>20}" for measure in measures))
    for name, scores in entries:
        if scores:
            values = "".join(f"{100 * scores[measure]:20.1f}" for measure in measures)
            lines.append(f"{name:<{width}}{values}")
    return "\n".join(lines)


def load_result(path: Path) -> dict[str, Any]:
    """One result file.

    Args:
        path: File that `amd-hf evaluate --output` wrote.

    Returns:
        The result.

    Raises:
        ValueError: If the file is missing, no JSON, or no result of an evaluation.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"Cannot read {path} ({error}); pass files of `amd-hf evaluate --output`."
        ) from error
    missing = [key for key in REQUIRED_KEYS if not isinstance(result, dict) or key not in result]
    if missing:
        raise ValueError(f"{path} is not a result of `amd-hf evaluate`: it has no {missing[0]!r}.")
    return result


def render_report(results: Sequence[dict[str, Any]], facts: Sequence[str] = ("-", "-", "-")) -> str:
    """Markdown tables of any number of results, one table per benchmark.

    Args:
        results: What `evaluate_benchmark` returned, in any order.
        facts: How the evaluated model was trained, for the video tables: end to end or not,
            supervision, and dense flow that was used.

    Returns:
        Markdown text: ours (selected and oracle, with 95 % intervals), controls, baselines and
        published rows; below each table what was run, on what, when.

    Raises:
        ValueError: If there are no results.
    """
    if not results:
        raise ValueError("A report needs at least one result file, got none.")
    published = published_results()
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault(result["benchmark"], []).append(result)
    return "\n\n".join(_section(group, published, facts) for group in groups.values()) + "\n"


def _section(
    group: Sequence[dict[str, Any]], published: dict[str, Any], facts: Sequence[str]
) -> str:
    """Table and notes of one benchmark."""
    first = group[0]
    kind = first["kind"]
    headings = [heading for _, heading in COLUMNS[kind]]
    is_video = kind == "video"
    header = ["method", "protocol", *headings] + (
        ["e2e", "supervision", "flow"] if is_video else []
    )
    lines = [f"### {_heading(first)}", "", _line(header), _line(["---"] * len(header))]
    seen: set[str] = set()
    for result in group:
        lines += [_line(cells) for cells in _own_rows(result, facts)]
    for result in group:
        lines += [_line(cells) for cells in _control_rows(result, seen)]
    lines += [_line(cells) for cells in _published_rows(first, published)]
    return "\n".join([*lines, "", *_notes(group)])


def _heading(result: dict[str, Any]) -> str:
    """Title with how much of the set was scored."""
    if not result["is_subset"]:
        unit = "frames" if result["kind"] == "video" else "images"
        return f"{result['title']} ({result['num_scored']} {unit})"
    return f"{result['title']}, subset ({result['num_scored']} of {result['num_expected']})"


def _line(cells: Iterable[str]) -> str:
    """One line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def _value(measure: str, score: float, interval: Sequence[float] | None = None) -> str:
    """A score in percent (errors as they are), with its interval where there is one."""
    if measure in PLAIN_MEASURES:
        text, ends = f"{score:.3f}", [f"{end:.3f}" for end in interval or ()]
    else:
        text, ends = f"{100 * score:.1f}", [f"{100 * end:.1f}" for end in interval or ()]
    return f"{text} [{', '.join(ends)}]" if ends else text


def _score_cells(kind: str, scores: dict[str, float], intervals: dict[str, Any]) -> list[str]:
    """The score cells of one row; only the first column carries its interval."""
    cells = []
    for index, (measure, _) in enumerate(COLUMNS[kind]):
        interval = intervals.get(measure) if index == 0 else None
        cells.append(_value(measure, scores[measure], interval))
    return cells


def _facts(kind: str, *facts: str) -> list[str]:
    """The columns e2e, supervision and flow, which only the video tables have."""
    return list(facts) if kind == "video" else []


def _own_rows(result: dict[str, Any], facts: Sequence[str]) -> list[list[str]]:
    """Rows of the evaluated model: selected and the two oracles; what is equal shares a row."""
    kind, settings = result["kind"], result["settings"]
    side = settings.get("short_side")
    sizes = [] if side is None else [f"{side} pixels"]
    protocol = " + ".join([result["protocol"], *sizes, *(settings.get("refinements") or [])])
    objective = settings.get("adapt_settings", {}).get("objective")
    if settings.get("adapt_steps") and objective not in WITHOUT_FLOW:
        facts = (*facts[:2], "DIS (training and adaptation)")
    labels: dict[tuple[str, ...], list[str]] = {}
    for key, label in CHOICES:
        if result.get(key):
            intervals = result.get("intervals", {}).get(key, {})
            cells = tuple(_score_cells(kind, result[key], intervals))
            name = SHORT_NAMES[key] if cells in labels else label
            labels.setdefault(cells, []).append(name)
    rows = []
    for cells, names in labels.items():
        title = " = ".join(names)
        if names[0] == CHOICES[0][1]:
            title = f"**{result['model']}**, {title}"
        rows.append([title, protocol, *cells, *_facts(kind, *facts)])
    return rows


def _control_rows(result: dict[str, Any], seen: set[str]) -> list[list[str]]:
    """Rows of controls and baselines, each once per benchmark."""
    kind, rows = result["kind"], []
    for group in ("controls", "baselines"):
        for name, entry in result.get(group, {}).items():
            if name in seen:
                continue
            seen.add(name)
            intervals = entry.get("intervals", {}).get("selected", {})
            cells = _score_cells(kind, entry["selected"], intervals)
            facts = _facts(kind, "-", "none", "DIS" if name == "motion" else "none")
            rows.append([CONTROL_NAMES.get(name, name), "measured", *cells, *facts])
    return rows


def _published_rows(result: dict[str, Any], published: dict[str, Any]) -> list[list[str]]:
    """Rows printed by others."""
    kind, name = result["kind"], result["benchmark"]
    table = published[kind]
    rows = []
    for row in table["rows"]:
        if name not in row:
            continue
        cells = {measure: "-" for measure, _ in COLUMNS[kind]}
        if kind == "image":
            # At which threshold the authors take F is not said; see the note below the table.
            cells["adaptive_f_beta"] = f"{row[name]['f_beta']:.1f}"
            cells["mae"] = f"{row[name]['mae']:.2f}"
        else:
            star = "\\*" if name in row.get("starred", ()) else ""
            cells[table["measure"]] = f"{row[name]:.1f}{star}"
        facts = _facts(
            kind, "yes" if row.get("e2e") else "no", row.get("supervision", ""), row.get("flow", "")
        )
        rows.append([row["model"], "*published*", *cells.values(), *facts])
    return rows


def _notes(group: Sequence[dict[str, Any]]) -> list[str]:
    """What was run, on what and when, and how to read the table."""
    first = group[0]
    unit = "sequences" if first["kind"] == "video" else "images"
    notes = [f"Scores in percent (MAE as is); [95 % bootstrap interval over {unit}]."]
    if first["is_subset"]:
        notes.append("A subset: not comparable with published numbers of the whole set.")
    if first["kind"] == "image":
        notes.append(F_BETA_NOTE)
    lines = [" ".join(notes)]
    for result in group:
        versions = result["versions"]
        command = result.get("command")
        run = f"`{command}`" if command else result["model"]
        source = f"commit {versions['commit']}" if "commit" in versions else versions["amd_hf"]
        lines.append(
            f"- {run}: {result['created'][:10]}, {source}, {result['num_found']} of "
            f"{result['num_expected']} annotated frames found, "
            f"{result['num_without_mask']} without a mask, {result['seconds']:.0f} s."
        )
    return lines


def insert_report(path: Path, report: str) -> None:
    """Replaces what stands between the two result marks of a file.

    Args:
        path: Markdown file with the lines `<!-- results: begin -->` and `<!-- results: end -->`.
        report: Text to put between them.

    Raises:
        ValueError: If the file cannot be read, or does not hold both marks once and in order.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"Cannot read {path} ({error}); pass a Markdown file.") from error
    if text.count(BEGIN_MARK) != 1 or text.count(END_MARK) != 1:
        raise ValueError(f"{path} must hold the lines {BEGIN_MARK} and {END_MARK} once each.")
    before, rest = text.split(BEGIN_MARK)
    if END_MARK not in rest:
        raise ValueError(f"{path} must hold {BEGIN_MARK} before {END_MARK}.")
    after = rest.split(END_MARK)[1]
    path.write_text(f"{before}{BEGIN_MARK}\n\n{report}\n{END_MARK}{after}", encoding="utf-8")
