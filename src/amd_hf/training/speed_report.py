"""How fast a run was, and how fast it could have been with data or model alone."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from amd_hf.training.objectives import segment_flow_objective


def decode_limit(
    batches: Iterator[Mapping[str, Any]], seconds: float, pairs_per_batch: int
) -> float:
    """Pairs per second of the data stream with nothing else to do.

    Args:
        batches: A fresh stream; its first batch (start of the workers) is not counted.
        seconds: Time to measure.
        pairs_per_batch: Pairs in a batch.

    Returns:
        Pairs per second.
    """
    next(batches)
    begin, count = time.perf_counter(), 0
    while count == 0 or time.perf_counter() - begin < seconds:
        next(batches)
        count += pairs_per_batch
    return count / (time.perf_counter() - begin)


def model_limit(model: Any, batch: Mapping[str, Any], seconds: float, accelerator: Any) -> float:
    """Pairs per second of forward and backward passes over one batch that is already there.

    Args:
        model: An `AMDModel` of this process alone. Its weights stay; its statistics move.
        batch: A batch on the device of the model.
        seconds: Time to measure.
        accelerator: Its mixed precision is used.

    Returns:
        Pairs per second of one process.
    """
    model.train()
    _pass(model, batch, accelerator)
    begin, count = time.perf_counter(), 0
    while count == 0 or time.perf_counter() - begin < seconds:
        _pass(model, batch, accelerator)
        count += len(batch["pixel_values"])
    return count / (time.perf_counter() - begin)


def _pass(model: Any, batch: Mapping[str, Any], accelerator: Any) -> None:
    with accelerator.autocast():
        loss, _ = segment_flow_objective(model, batch, 0)
    loss.backward()
    model.zero_grad(set_to_none=True)
    if accelerator.device.type == "cuda":
        torch.cuda.synchronize()


def describe_speed(samples_per_second: float, decode: float, model: float) -> str:
    """One line for the end of a run.

    Args:
        samples_per_second: What the run reached.
        decode: What the data stream could give.
        model: What the model could take.
    """
    return (
        f"{samples_per_second:.2f} pairs/s: {samples_per_second / decode:.0%} of the decode limit "
        f"({decode:.2f} pairs/s) and {samples_per_second / model:.0%} of the model limit "
        f"({model:.2f} pairs/s); the {'data' if decode < model else 'model'} is the narrower one."
    )
