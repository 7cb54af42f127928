"""The work that is timed on tensors: a training step and inference, published and ours."""

from __future__ import annotations

import copy
import importlib.util
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from amd_hf import AMDConfig, AMDModel
from amd_hf.benchmarking.inputs import example_pairs, seeded_model
from amd_hf.benchmarking.published_replica import PublishedReplica
from amd_hf.benchmarking.timing import Timing, measure

LEARNING_RATE, WEIGHT_DECAY = 1e-4, 1e-6
# Of replica against model, both in float32.
PARITY_RTOL = 2e-3


@dataclass
class Measurement:
    """Timings of the variants of one piece of work.

    Attributes:
        name: What was timed.
        setting: Sizes and counts, in words.
        timings: Timing per variant; `published` is the baseline where there is one.
        flops: Floating-point operations of one run of ours, 0 where they were not counted.
        notes: Further figures by name.
    """

    name: str
    setting: str
    timings: dict[str, Timing]
    flops: int = 0
    notes: dict[str, Any] = field(default_factory=dict)

    def speedup(self, variant: str, use_cpu: bool = False) -> float | None:
        """How many times faster than `published` a variant is; None without that baseline."""
        baseline = self.timings.get("published")
        if baseline is None:
            return None
        ours = self.timings[variant]
        return baseline.cpu / ours.cpu if use_cpu else baseline.median / ours.median

    def to_dict(self) -> dict[str, Any]:
        """All figures as plain numbers and texts."""
        return {
            "name": self.name,
            "setting": self.setting,
            "timings": {name: timing.to_dict() for name, timing in self.timings.items()},
            "speedup": {name: self.speedup(name) for name in self.timings},
            "speedup_cpu": {name: self.speedup(name, use_cpu=True) for name in self.timings},
            "flops": self.flops,
            "notes": self.notes,
        }


class TrainingStep:
    """One step of pre-training: forward, backward and Adam.

    Args:
        model: The model to train; a copy is taken.
        pairs: Normalized pairs (B, 2, 3, H, W).
        published: Run the published computation with an optimizer as it was then.
        autocast: Compute convolutions in bfloat16.
    """

    def __init__(
        self, model: AMDModel, pairs: Tensor, *, published: bool = False, autocast: bool = False
    ) -> None:
        self.model = copy.deepcopy(model).train()
        self.pairs = pairs
        self.autocast = autocast
        self.loss_of: nn.Module = PublishedReplica(self.model) if published else self.model
        self.optimizer = torch.optim.Adam(
            self.model.parameters(),
            LEARNING_RATE,
            weight_decay=WEIGHT_DECAY,
            foreach=False if published else None,
            fused=not published,
        )

    def __call__(self) -> float:
        """Takes the step and returns the loss before it."""
        with torch.autocast(self.pairs.device.type, torch.bfloat16, enabled=self.autocast):
            loss = self.loss_of(self.pairs).loss
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())


def time_training(
    config: AMDConfig, crop: int = 384, batch: int = 2, rounds: int = 3, device: str = "cpu"
) -> Measurement:
    """Times a training step of the published computation and of ours.

    Args:
        config: Architecture.
        crop: Side of the square crops.
        batch: Pairs per step.
        rounds: Rounds that count.
        device: Device to measure.

    Raises:
        RuntimeError: If the two computations disagree.
    """
    model = seeded_model(config, device)
    pairs = example_pairs(batch, crop, device)
    difference = compare_with_replica(model, pairs)
    ours = TrainingStep(model, pairs)
    timings = measure(
        {
            "published": TrainingStep(model, pairs, published=True),
            "fp32": ours,
            "bf16": TrainingStep(model, pairs, autocast=True),
        },
        rounds,
        device,
    )
    return Measurement(
        "training step",
        f"{batch} pairs of {crop}x{crop}",
        timings,
        count_flops(ours),
        {"relative_difference_of_the_loss": difference},
    )


def time_inference(
    config: AMDConfig,
    size: tuple[int, int] = (392, 697),
    batches: Sequence[int] = (1, 8),
    rounds: int = 3,
    device: str = "cpu",
    compiles: bool = False,
) -> list[Measurement]:
    """Times the segments of images, one by one and in batches.

    Args:
        config: Architecture.
        size: Height and width of the images; (392, 697) is a 480p frame as published.
        batches: Images per forward pass.
        rounds: Rounds that count.
        device: Device to measure.
        compiles: Whether to time `torch.compile` in bfloat16, too; on a CPU it needs a compiler.
    """
    model = seeded_model(config, device).eval()
    narrow = copy.deepcopy(model).bfloat16()
    replica = PublishedReplica(model)
    results = []
    sessions: dict[str, Callable[[Tensor], Any]] = {}
    if torch.device(device).type == "cpu" and importlib.util.find_spec("onnxruntime"):
        sessions = _onnx_sessions(model, torch.randn(1, 3, *size))
    for batch in batches:
        images = torch.randn(batch, 3, *size, device=device)
        small = images.to(torch.bfloat16)
        work: dict[str, Callable[[], Any]] = {
            "published": without_gradient(replica.segment, images),
            "fp32": without_gradient(model, images),
            "bf16": without_gradient(narrow, small),
        }
        work |= {name: partial(session, images) for name, session in sessions.items()}
        notes: dict[str, Any] = {}
        if compiles and batch == batches[0]:
            work["bf16, compiled"], seconds = _compiled(narrow, small)
            notes["seconds_to_compile"] = seconds
        timings = measure(work, rounds, device)
        notes["images_per_second"] = {n: batch / t.median for n, t in timings.items()}
        results.append(
            Measurement(
                "inference",
                f"{batch} image{'s' * (batch > 1)} of {size[0]}x{size[1]}",
                timings,
                count_flops(work["fp32"]),
                notes,
            )
        )
    return results


def _compiled(model: AMDModel, images: Tensor) -> tuple[Callable[[], Any], float]:
    """The compiled model as a function of nothing, and the seconds until its first result."""
    torch.compiler.reset()
    compiled = without_gradient(torch.compile(model), images)
    begin = time.perf_counter()
    compiled()
    return compiled, time.perf_counter() - begin


def _onnx_sessions(model: AMDModel, image: Tensor) -> dict[str, Callable[[Tensor], Any]]:
    """ONNX Runtime in float32 and int8, with as many threads as torch has."""
    from amd_hf.hub.deployment import OnnxSegmenter, export_onnx, quantize_static

    with tempfile.TemporaryDirectory() as folder:
        plain = export_onnx(model, Path(folder) / "fp32.onnx")
        int8 = quantize_static(plain, Path(folder) / "int8.onnx", [image])
        threads = torch.get_num_threads()
        return {
            "onnx fp32": OnnxSegmenter(plain, num_threads=threads),
            "onnx int8": OnnxSegmenter(int8, num_threads=threads),
        }


def compare_with_replica(model: AMDModel, pairs: Tensor) -> float:
    """Returns the relative difference of our loss and the published one, in float32.

    Args:
        model: The model; it is compared in eval mode and left as it was.
        pairs: Normalized pairs (B, 2, 3, H, W).

    Raises:
        RuntimeError: If loss or segments disagree: then the benchmark would compare unlike things.
    """
    was_training = model.training
    model.eval()
    with torch.no_grad():
        ours, theirs = model(pixel_values=pairs), PublishedReplica(model)(pairs)
    model.train(was_training)
    difference = abs(float(ours.loss) / float(theirs.loss) - 1.0)
    logits = float((ours.segment_logits - theirs.segment_logits).abs().max())
    scale = float(theirs.segment_logits.abs().max())
    if not (difference <= PARITY_RTOL and logits <= PARITY_RTOL * max(scale, 1.0)):
        raise RuntimeError(
            f"The model and the published computation disagree: loss by {difference:.2g} "
            f"(relative), logits by {logits:.2g}; the speed of unlike computations is no result."
        )
    return difference


def count_flops(function: Callable[[], Any]) -> int:
    """Floating-point operations of one call (2 per multiply-add; convolutions and products)."""
    with FlopCounterMode(display=False) as counter:
        function()
    return int(counter.get_total_flops())


def without_gradient(model: Callable[[Tensor], Any], images: Tensor) -> Callable[[], Any]:
    """Returns a function that runs `model` on `images` in inference mode."""

    def call() -> Any:
        with torch.inference_mode():
            return model(images)

    return call
