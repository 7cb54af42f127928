"""Timing that survives a busy machine: interleaved rounds, medians, and the load beside them."""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import amd_hf


@dataclass(frozen=True)
class Timing:
    """Seconds of one piece of work over some rounds.

    Attributes:
        median: Median wall-clock seconds.
        fastest: Smallest wall-clock seconds.
        slowest: Largest wall-clock seconds.
        cpu: Median processor seconds of this process, all threads; on a busy machine the fairer
            figure, since waiting for a core does not count.
        rounds: Number of rounds.
    """

    median: float
    fastest: float
    slowest: float
    cpu: float
    rounds: int

    @property
    def spread(self) -> float:
        """Slowest minus fastest, as a share of the median."""
        return (self.slowest - self.fastest) / self.median

    def to_dict(self) -> dict[str, float]:
        """The figures as plain numbers."""
        return {**asdict(self), "spread": self.spread}


def measure(
    work: Mapping[str, Callable[[], Any]],
    rounds: int = 5,
    device: str | torch.device = "cpu",
) -> dict[str, Timing]:
    """Times pieces of work against each other, one of each per round.

    Rounds alternate between the pieces, so that a machine that gets slower or busier meanwhile
    slows all of them. One round before the first is not counted.

    Args:
        work: Functions by name.
        rounds: Rounds that count, at least 1.
        device: Device to wait for after each piece.

    Returns:
        The timing of every piece.

    Raises:
        ValueError: If `rounds` is not positive.
    """
    if rounds < 1:
        raise ValueError(f"`rounds` must be at least 1, got {rounds}.")
    device = torch.device(device)
    wall: dict[str, list[float]] = {name: [] for name in work}
    cpu: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds + 1):
        for name, function in work.items():
            synchronize(device)
            begin, begin_cpu = time.perf_counter(), time.process_time()
            function()
            synchronize(device)
            wall[name].append(time.perf_counter() - begin)
            cpu[name].append(time.process_time() - begin_cpu)
    return {
        name: Timing(
            median=statistics.median(wall[name][1:]),
            fastest=min(wall[name][1:]),
            slowest=max(wall[name][1:]),
            cpu=statistics.median(cpu[name][1:]),
            rounds=rounds,
        )
        for name in work
    }


def synchronize(device: torch.device) -> None:
    """Waits until everything queued on `device` is done; nothing to do on a CPU."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)


def describe_machine(device: str | torch.device = "cpu") -> dict[str, Any]:
    """Processor, device, threads, versions and the load of the last minute."""
    device = torch.device(device)
    name = (
        _processor()
        if device.type == "cpu"
        else torch.get_device_module(device).get_device_name(device)
    )
    return {
        "device": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": load(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "amd_hf": amd_hf.__version__,
    }


def load() -> float | None:
    """Processes that ran or waited for a core over the last minute, where the system tells."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def peak_memory(device: str | torch.device = "cpu") -> float | None:
    """Peak of this process in GB: resident memory, or what it took of the GPU.

    None where the system does not tell. `ru_maxrss` is not asked where there is another way: on
    Linux a process inherits the peak of the one that started it.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e9
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
