"""Test-time adaptation: the training loss, minimized on the video that is to be segmented.

Reads the frames once into a small cache, samples pairs of crops from it, and takes some steps of
Adam on a copy of the model. The caller's model and random state stay as they are.
"""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils import logging

from .frame_cache_amd import FrameCache
from .image_io_amd import MIN_SIDE
from .modeling_amd import AMDModel

logger = logging.get_logger(__name__)


@dataclass
class AdaptationArguments:
    """Settings of `adapt_to_video`; the defaults are the published training settings.

    Args:
        num_steps: Optimizer steps; 0 returns a plain copy.
        learning_rate: Learning rate of the first step.
        min_learning_rate: Learning rate after the last step; the decay is polynomial.
        decay_power: Exponent of that decay.
        weight_decay: L2 penalty of Adam, on all parameters.
        batch_size: Pairs of frames per step.
        crop_size: Side of the square crops in pixels, cut down to the frame where it is smaller.
        short_side: Short side to which the frames are resized.
        short_side_range: Every pair is resized by a random factor in this range.
        frame_gap: Distance of the frames of a pair, or its smallest and largest value.
        max_frames: Frames kept in memory; of longer videos, runs of 8 adjacent frames are kept,
            evenly spread.
        parameters: "all", "appearance", "motion", or a function that gets a parameter's name.
        batch_norm: "train" uses and updates batch statistics, "eval" keeps the model's.
        dropout: Whether dropout is active.
        objective: Function of the model and of normalized pairs (B, 2, 3, H, W) that returns the
            loss to minimize; None takes the published photometric loss of the segment flow. If it
            has a method `video_targets`, that is called once with the model in eval mode and the
            kept frames (frame number -> uint8 (3, H, W)) and returns a map (h, w) in [0, 1] for
            each; the function then gets the maps' crops (B, 2, H, W) as its third argument.
        autocast_dtype: `torch.bfloat16` or `torch.float16` for mixed precision; None for float32.
        compile_options: Arguments of `torch.compile` for the model during the steps, such as {} or
            {"mode": "reduce-overhead"}, which replays CUDA graphs on a GPU; None does not compile.
            Compiling takes minutes on a CPU. The returned model is not compiled.
        seed: Seed of pairs, crops and dropout: same seed, same result (on one machine).
        time_limit: Seconds after which no further step starts; the learning rate then decays with
            time. Reading the video stops after half of it. At least one step is taken.

    Raises:
        ValueError: If a setting is out of range.

    Source: AMD paper: 100 iterations per video on pairs of its frames. Learning rate, batch, crops
    and schedule are not given there; they are those of the released training configuration.
    """

    num_steps: int = 100
    learning_rate: float = 1e-4
    min_learning_rate: float = 1e-6
    decay_power: float = 0.9
    weight_decay: float = 1e-6
    batch_size: int = 2
    crop_size: int = 384
    short_side: int = 400
    short_side_range: tuple[float, float] = (0.96, 1.0)
    frame_gap: int | tuple[int, int] = 1
    max_frames: int = 256
    parameters: str | Callable[[str], bool] = "all"
    batch_norm: str = "train"
    dropout: bool = True
    objective: Callable[..., Tensor] | None = None
    autocast_dtype: torch.dtype | None = None
    compile_options: dict[str, Any] | None = None
    seed: int = 0
    time_limit: float | None = None

    def __post_init__(self) -> None:
        gaps = (self.frame_gap,) * 2 if isinstance(self.frame_gap, int) else tuple(self.frame_gap)
        if len(gaps) != 2 or not 1 <= gaps[0] <= gaps[1]:
            raise ValueError(
                "`frame_gap` must be a positive number of frames or a (smallest, largest) pair, "
                f"got {self.frame_gap}."
            )
        self.gaps = range(gaps[0], gaps[1] + 1)
        for name, least in (("num_steps", 0), ("batch_size", 1), ("crop_size", MIN_SIDE)):
            _check_least(name, getattr(self, name), least)
        _check_least("max_frames", self.max_frames, 2 * gaps[1] + 2)
        low, high = self.short_side_range
        if not 0 < low <= high <= 1:
            raise ValueError(
                f"`short_side_range` must satisfy 0 < low <= high <= 1, got {(low, high)}."
            )
        _check_least("short_side * short_side_range[0]", self.short_side * low, MIN_SIDE)
        _check_least("learning_rate", self.learning_rate, self.min_learning_rate)
        if self.time_limit is not None and not self.time_limit > 0:
            raise ValueError(f"`time_limit` must be positive seconds, got {self.time_limit}.")
        self._check_choices()

    def _check_choices(self) -> None:
        choices = ("all", "appearance", "motion")
        if not callable(self.parameters) and self.parameters not in choices:
            raise ValueError(
                f"`parameters` must be one of {choices} or a function of a parameter's name, got "
                f"{self.parameters!r}."
            )
        if self.batch_norm not in ("train", "eval"):
            raise ValueError(f'`batch_norm` must be "train" or "eval", got {self.batch_norm!r}.')
        if self.autocast_dtype not in (None, torch.bfloat16, torch.float16):
            raise ValueError(
                "`autocast_dtype` must be None, torch.bfloat16 or torch.float16, got "
                f"{self.autocast_dtype}."
            )

    def adapts(self, name: str) -> bool:
        """Whether the parameter of that name is updated."""
        if callable(self.parameters):
            return bool(self.parameters(name))
        is_motion = name.startswith("segment_flow.")
        return self.parameters == "all" or is_motion == (self.parameters == "motion")

    def learning_rate_at(self, progress: float) -> float:
        """Polynomially decayed learning rate; `progress` runs from 0 to 1."""
        share = max(1.0 - progress, 0.0) ** self.decay_power
        return (self.learning_rate - self.min_learning_rate) * share + self.min_learning_rate


@dataclass
class AdaptationResult:
    """What `adapt_to_video(..., return_history=True)` returns.

    Attributes:
        model: The adapted copy, in eval mode.
        losses: Loss before each step that was taken.
        learning_rates: Learning rate of each step.
        num_frames: Frames of the video that were kept for sampling pairs.
        seconds: Time spent, reading included.
    """

    model: AMDModel
    losses: list[float] = field(default_factory=list)
    learning_rates: list[float] = field(default_factory=list)
    num_frames: int = 0
    seconds: float = 0.0

    @property
    def num_steps(self) -> int:
        """Number of steps taken."""
        return len(self.losses)


def adaptation_scale(image_processor: Any) -> dict[str, Any]:
    """The `short_side` and `crop_size` that adapt at the size at which a processor segments.

    A shortest edge of 392 gives the published 400 and 384; other sizes keep these proportions.

    Args:
        image_processor: An `AMDImageProcessor`; with a fixed size its shorter side counts.
    """
    size = image_processor.size
    shortest_edge = size.shortest_edge or min(size.height, size.width)
    short_side = max(round(shortest_edge / 0.98), int(MIN_SIDE / 0.96) + 1)
    return {"short_side": short_side, "crop_size": max(int(short_side * 0.96), MIN_SIDE)}


def adapt_to_video(
    model: AMDModel,
    frames: Any,
    num_steps: int = 100,
    *,
    progress: bool = False,
    callback: Callable[[int, int, float], None] | None = None,
    return_history: bool = False,
    **settings: Any,
) -> Any:
    """A copy of `model`, trained for some steps on the frames of one video.

    Args:
        model: Any `AMDModel`; it is not changed. Half-precision weights are adapted in float32.
        frames: List of images, path of a video or of a folder of frames, array of shape
            (T, H, W, 3), or iterator of images, all of one size and in temporal order.
        num_steps: Optimizer steps.
        progress: Whether to show a progress bar.
        callback: Called after every step with the number of steps taken, `num_steps` and the loss.
        return_history: Return an `AdaptationResult` in place of the model.
        settings: Any field of `AdaptationArguments`.

    Returns:
        The adapted model in eval mode, on the device and in the dtype of `model`.

    Raises:
        TypeError: If `model` is no `AMDModel` or a setting is unknown.
        ValueError: If a setting is out of range, or the frames cannot be read, differ in size, or
            are too few for one pair.
        RuntimeError: If the loss stops being finite.

    Source: AMD paper (test-time adaptation, 100 iterations per video); released code: absent.
    """
    start = time.monotonic()
    unknown = sorted(set(settings) - set(AdaptationArguments.__dataclass_fields__))
    if unknown:
        raise TypeError(
            f"Unknown settings {unknown} of the adaptation; it takes "
            f"{', '.join(AdaptationArguments.__dataclass_fields__)}."
        )
    arguments = AdaptationArguments(num_steps=num_steps, **settings)
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    if not any(parent.__name__ == "AMDModel" for parent in type(model).__mro__):
        raise TypeError(
            f"`model` must be an AMDModel (with its motion pathway), got {type(model).__name__}."
        )
    limit = arguments.time_limit
    cache = FrameCache(
        frames,
        short_side=arguments.short_side,
        gaps=arguments.gaps,
        max_frames=arguments.max_frames,
        deadline=None if limit is None else start + limit / 2,
    )
    with torch.inference_mode(False), torch.enable_grad(), _own_random_state(model.device):
        result = AdaptationResult(copy.deepcopy(model), num_frames=len(cache.frames))
        if num_steps and hasattr(arguments.objective, "video_targets"):
            _add_targets(cache, result.model.eval(), arguments.objective)
        bar = logging.tqdm(total=num_steps, desc="adapting", disable=not progress)
        for loss in _train(result, cache, arguments, start):
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            bar.update()
            if callback is not None:
                callback(result.num_steps, num_steps, loss)
        bar.close()
    result.model.eval()
    result.seconds = time.monotonic() - start
    return result if return_history else result.model


def _add_targets(cache: FrameCache, model: AMDModel, objective: Any) -> None:
    """Puts the objective's map of each frame behind its colors, so that both are cut alike."""
    with torch.no_grad():
        targets = objective.video_targets(model, dict(cache.frames))
    for number, frame in cache.frames.items():
        target = targets[number].to(frame.device, torch.float32)
        size = (frame.shape[-2], frame.shape[-1])
        resized = F.interpolate(target[None, None], size, mode="bilinear", align_corners=False)
        channel = (resized[0] * 255.0).round().clamp(0, 255).to(torch.uint8)
        cache.frames[number] = torch.cat([frame, channel])


def _train(
    result: AdaptationResult, cache: FrameCache, arguments: AdaptationArguments, start: float
) -> Iterator[float]:
    """Trains `result.model` in place and yields the loss of every step."""
    model, device = result.model, result.model.device
    with _prepared(model, arguments) as weights:
        torch.manual_seed(arguments.seed)
        generator = torch.Generator().manual_seed(arguments.seed)
        optimizer = torch.optim.Adam(
            weights or [torch.zeros(1)],
            arguments.learning_rate,
            weight_decay=arguments.weight_decay,
            fused=device.type in ("cpu", "cuda"),  # one pass over the weights in place of ten
        )
        uses_scaler = arguments.autocast_dtype is torch.float16 and device.type != "cpu"
        scaler = torch.amp.GradScaler(device.type, enabled=uses_scaler)
        for step in range(arguments.num_steps):
            elapsed = (time.monotonic() - start) / (arguments.time_limit or float("inf"))
            if elapsed >= 1 and step > 0:
                break
            rate = arguments.learning_rate_at(max(step / arguments.num_steps, elapsed))
            optimizer.param_groups[0]["lr"] = rate
            pairs = [
                cache.sample_pair(generator, arguments.crop_size, arguments.short_side_range)
                for _ in range(arguments.batch_size)
            ]
            if arguments.compile_options is not None:
                torch.compiler.cudagraph_mark_step_begin()
            loss = _loss(model, torch.stack(pairs).to(device), arguments)
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            value = float(loss.detach())
            if value != value or value in (float("inf"), float("-inf")):
                raise RuntimeError(
                    f"The loss is {value} at adaptation step {step}; lower `learning_rate` "
                    f"({arguments.learning_rate:g}) or adapt without `autocast_dtype`."
                )
            result.losses.append(value)
            result.learning_rates.append(rate)
            yield value
        optimizer.zero_grad(set_to_none=True)


@contextmanager
def _prepared(model: AMDModel, arguments: AdaptationArguments) -> Iterator[list[nn.Parameter]]:
    """The model as the steps need it, in float32; gives the parameters that adapt."""
    dtype = model.dtype
    if dtype in (torch.bfloat16, torch.float16):
        model.float()
    needs_grad = {name: weight.requires_grad for name, weight in model.named_parameters()}
    for name, weight in model.named_parameters():
        weight.requires_grad_(arguments.adapts(name))
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    if not weights and arguments.num_steps:
        raise ValueError("`parameters` selects no parameter of the model; loosen the function.")
    _set_mode(model, arguments)
    if arguments.compile_options is not None:
        model.compile(**arguments.compile_options)
    yield weights
    model._compiled_call_impl = None
    for name, weight in model.named_parameters():
        weight.requires_grad_(needs_grad[name])
    nn.Module.to(model, dtype)


def _loss(model: AMDModel, pairs: Tensor, arguments: AdaptationArguments) -> Tensor:
    """Loss of uint8-valued pairs (B, 2, 3, H, W), or (B, 2, 4, H, W) with a map of targets."""
    mean = pairs.new_tensor(model.config.image_mean).view(3, 1, 1)
    std = pairs.new_tensor(model.config.image_std).view(3, 1, 1)
    autocast = (
        nullcontext()
        if arguments.autocast_dtype is None
        else torch.autocast(pairs.device.type, dtype=arguments.autocast_dtype)
    )
    pixel_values = (pairs[:, :, :3] - mean) / std
    with autocast:
        if pairs.shape[2] > 3:
            return arguments.objective(model, pixel_values, pairs[:, :, 3] / 255.0)  # type: ignore[misc]
        if arguments.objective is not None:
            return arguments.objective(model, pixel_values)
        return model(pixel_values=pixel_values).loss


def _set_mode(model: nn.Module, arguments: AdaptationArguments) -> None:
    """Training mode, apart from what the arguments hold back."""
    model.train()
    for module in model.modules():
        is_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
        is_dropout = isinstance(module, nn.modules.dropout._DropoutNd)
        if (is_norm and arguments.batch_norm == "eval") or (is_dropout and not arguments.dropout):
            module.eval()


def _check_least(name: str, value: float, least: float) -> None:
    """Raises ValueError for a setting below its least value."""
    if not value >= least:
        raise ValueError(f"`{name}` must be at least {least}, got {value}.")


@contextmanager
def _own_random_state(device: torch.device) -> Iterator[None]:
    """Leaves the random state of the CPU and of `device` as it was."""
    if device.type == "mps":
        mps_state = torch.mps.get_rng_state()
        try:
            with torch.random.fork_rng(devices=[]):
                yield
        finally:
            torch.mps.set_rng_state(mps_state)
        return
    kind = "cuda" if device.type == "cpu" else device.type
    num_devices = 0 if device.type == "cpu" else torch.get_device_module(device).device_count()
    with torch.random.fork_rng(devices=range(num_devices), device_type=kind):
        yield


__all__ = [
    "AdaptationArguments",
    "AdaptationResult",
    "adapt_to_video",
    "adaptation_scale",
]
