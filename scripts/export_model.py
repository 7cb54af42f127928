"""Export the segments of an AMD model: ONNX, int8 ONNX and a `torch.export` program.

    python scripts/export_model.py --output exported                      # the bundled checkpoint
    python scripts/export_model.py --model org/amd-ytvos --formats onnx int8 --calibration FRAMES
    python scripts/export_model.py --formats onnx program --benchmark segtrackv2 --data SegTrackv2

Prints one JSON object: size, milliseconds per image and largest difference from the PyTorch model
for each format, and with `--benchmark` the region similarity J of each.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

import amd_hf
from amd_hf import AMDImageProcessor, AMDModel
from amd_hf.hub import deployment
from amd_hf.hub.deployment_measures import score_segmenters, time_segmenter
from amd_hf.image_io_amd import IMAGE_SUFFIXES, read_image

FORMATS = ("onnx", "int8", "int8-dynamic", "program")
SUFFIXES = {"onnx": ".onnx", "int8": "-int8.onnx", "int8-dynamic": "-int8-dynamic.onnx"}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=amd_hf.DEFAULT_CHECKPOINT, help="folder or Hub id")
    parser.add_argument("--output", type=Path, default=Path("exported"))
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=["onnx", "program"])
    parser.add_argument("--calibration", type=Path, help="folder of images, for the format int8")
    parser.add_argument("--num_calibration_images", type=int, default=32)
    parser.add_argument("--image_size", type=int, nargs=2, help="height and width for the timing")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--benchmark", help="video benchmark to score each format on")
    parser.add_argument("--data", type=Path, help="folder of the benchmark")
    parser.add_argument("--sequences", nargs="+", help="sequences of the benchmark; all if absent")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Exports, compares, times; returns the exit code."""
    args = parse_arguments(arguments)
    try:
        results = export(args)
    except (ValueError, ImportError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(results, indent=2))
    return 0


def export(args: argparse.Namespace) -> dict[str, Any]:
    """Writes the chosen formats and returns what was measured, by format."""
    if bool(args.benchmark) != bool(args.data):
        raise ValueError("`--benchmark` and `--data` go together; give both or neither.")
    if "int8" in args.formats and args.calibration is None:
        raise ValueError("The format int8 needs `--calibration`, a folder of images.")
    model = AMDModel.from_pretrained(args.model).eval()
    processor = AMDImageProcessor.from_pretrained(args.model)
    name = Path(args.model).name
    segmenters: dict[str, Any] = {"pytorch": model}
    files: dict[str, Path] = {}
    if set(args.formats) & set(SUFFIXES):
        files["onnx"] = deployment.export_onnx(model, args.output / f"{name}.onnx")
    if "int8" in args.formats:
        images = calibration_images(args.calibration, args.num_calibration_images, processor)
        target = args.output / f"{name}{SUFFIXES['int8']}"
        files["int8"] = deployment.quantize_static(files["onnx"], target, images)
    if "int8-dynamic" in args.formats:
        target = args.output / f"{name}{SUFFIXES['int8-dynamic']}"
        files["int8-dynamic"] = deployment.quantize_dynamic(files["onnx"], target)
    threads = torch.get_num_threads()
    for format_name, file in files.items():
        segmenters[format_name] = deployment.OnnxSegmenter(file, num_threads=threads)
    if "program" in args.formats:
        files["program"] = deployment.export_program(model, args.output / f"{name}.pt2")
        segmenters["program"] = deployment.ProgramSegmenter(files["program"])
    return measured(args, processor, segmenters, files)


def measured(
    args: argparse.Namespace,
    processor: AMDImageProcessor,
    segmenters: dict[str, Any],
    files: dict[str, Path],
) -> dict[str, Any]:
    """Size, speed, difference and, on request, J of every segmenter."""
    size = args.image_size or (384, 640)
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = segmenters["pytorch"](pixel_values=images).segment_masks
        results: dict[str, Any] = {}
        for name, segmenter in segmenters.items():
            masks = segmenter(pixel_values=images).segment_masks
            results[name] = {
                "milliseconds": 1e3 * time_segmenter(segmenter, images, args.rounds),
                "largest_difference": float((masks - expected).abs().max()),
            }
            if name in files:
                results[name]["file"] = str(files[name])
                results[name]["megabytes"] = files[name].stat().st_size / 1e6
    if args.benchmark:
        scores = score_segmenters(
            segmenters, processor, args.benchmark, args.data, sequences=args.sequences
        )
        for name, score in scores.items():
            results[name]["J"] = score
    results["setting"] = {"image_size": list(size), "threads": torch.get_num_threads()}
    return results


def calibration_images(
    folder: Path, count: int, processor: AMDImageProcessor
) -> list[torch.Tensor]:
    """Prepared images of a folder and its subfolders, evenly spread."""
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise ValueError(f"`--calibration` must be a folder of images, found none in {folder}.")
    chosen = files[:: max(len(files) // count, 1)][:count]
    return [processor(read_image(file), return_tensors="pt")["pixel_values"] for file in chosen]


if __name__ == "__main__":
    sys.exit(main())
