# /// script
# requires-python = ">=3.11"
# dependencies = ["amd-hf[train]"]
# ///
"""Make a trained model the bundled checkpoint: object segment, bfloat16 weights, input size.

    python scripts/bundle_checkpoint.py --model_name_or_path RUN/ema --dataset CLIPS

The object segment and its confidence are chosen from unlabelled pairs of the clips. With `--runs`,
`provenance.json` tells what the weights were made from.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from amd_hf import DEFAULT_CHECKPOINT, AMDImageProcessor, AMDModel
from amd_hf.evaluation.object_segment import choose_object_segment, store_object_segment
from amd_hf.training.arguments import PretrainingArguments
from amd_hf.training.data_stream import fixed_batches
from amd_hf.training.provenance import PROVENANCE_FILE, describe_sources, join_provenance

JSON_FILES = ("config.json", "preprocessor_config.json")


def parse_arguments() -> argparse.Namespace:
    """Returns the arguments of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model_name_or_path", required=True, help="folder of the trained model")
    add("--dataset", required=True, help="unlabelled clips for the choice of the object segment")
    add("--output_dir", default=DEFAULT_CHECKPOINT, help="folder of the bundled checkpoint")
    add("--short_side", type=int, default=160, help="input size of the image processor in pixels")
    add("--significant_bits", type=int, default=8, help="of the weights; fewer compress better")
    add("--num_pairs", type=int, default=128, help="pairs that the object segment is chosen from")
    add("--runs", nargs="+", default=[], help="all folders that the weights come from, in order")
    add("--dataset_terms", default="see the source", help="terms of use of the clips")
    add("--reproduce", default="", help="the command that made it; default: those of the runs")
    return parser.parse_args()


def choose(model: AMDModel, arguments: argparse.Namespace) -> str:
    """Stores the label-free choice in the model's configuration; returns the table of segments."""
    options = PretrainingArguments.from_recipe(
        "moving_objects",
        dataset=arguments.dataset,
        output_dir=arguments.output_dir,
        per_device_eval_batch_size=8,
    )
    batches = fixed_batches(options, model.config, arguments.dataset, -(-arguments.num_pairs // 8))
    choice = choose_object_segment(model, batches, num_pairs=arguments.num_pairs)
    store_object_segment(model.config, choice)
    return choice.table()


@torch.no_grad()
def round_weights(model: Any, significant_bits: int) -> None:
    """Rounds kernels to fewer significant bits than bfloat16 has, so that their file compresses.

    Batch-norm values and biases stay as they are.

    Args:
        model: Changed in place.
        significant_bits: From 2 to 8; 8 leaves it to bfloat16.

    Raises:
        ValueError: If the number is out of range.
    """
    if not 2 <= significant_bits <= 8:
        raise ValueError(f"`significant_bits` must be from 2 to 8, got {significant_bits}.")
    if significant_bits == 8:
        return
    steps = 2.0**significant_bits
    for parameter in model.parameters():
        if parameter.dim() > 1:
            mantissa, exponent = torch.frexp(parameter)
            parameter.copy_(torch.ldexp((mantissa * steps).round() / steps, exponent))


def save(model: Any, folder: Path, short_side: int) -> None:
    """Writes weights, configuration and image processor; the code comes with the package."""
    processor = AMDImageProcessor.from_model_config(
        model.config, size={"shortest_edge": short_side}
    )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as parent:
        model.to(torch.bfloat16).save_pretrained(parent)
        processor.save_pretrained(parent)
        for name in JSON_FILES:
            content = json.loads((Path(parent) / name).read_text(encoding="utf-8"))
            content.pop("auto_map", None)
            if name == "config.json":
                content["dtype"] = "float32"  # stored in bfloat16, computed in float32
            text = json.dumps(content, indent=2) + "\n"
            (folder / name).write_text(text, encoding="utf-8")
        weights = (Path(parent) / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(weights)


def provenance(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns what the runs tell, and how the weights are stored."""
    sources = describe_sources(arguments.dataset, arguments.dataset_terms)
    joined = join_provenance(arguments.runs, sources, arguments.reproduce)
    bits = arguments.significant_bits
    joined["training"]["weights"] = "stored as bfloat16" + (
        f" with kernels rounded to {bits} significant bits" if bits < 8 else ""
    )
    return joined


def main() -> int:
    """Chooses the object segment and writes the folder; returns the exit code."""
    arguments = parse_arguments()
    try:
        record = provenance(arguments) if arguments.runs else None
        model = AMDModel.from_pretrained(arguments.model_name_or_path).eval()
        round_weights(model, arguments.significant_bits)
        print(choose(model, arguments))
        save(model, Path(arguments.output_dir), arguments.short_side)
        if record is not None:
            text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
            (Path(arguments.output_dir) / PROVENANCE_FILE).write_text(text, encoding="utf-8")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        f"Wrote {arguments.output_dir}: object segment {model.config.object_segment}, confidence "
        f"{model.config.object_segment_confidence:.2f}."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
