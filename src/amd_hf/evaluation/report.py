"""Results as text."""

from typing import Any

HEADLINES = {
    "video": ("J", "F", "J_recall", "J_decay", "J_frames", "pooled_iou", "temporal_stability"),
    "image": ("max_f_beta", "mean_f_beta", "adaptive_f_beta", "mae", "s_measure", "iou"),
    "semantic": ("mean_iou", "mean_accuracy", "pixel_accuracy"),
}


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
