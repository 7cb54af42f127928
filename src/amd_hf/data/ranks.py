"""Work shared out over the processes of `torchrun` or `accelerate launch`, results put together."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from types import TracebackType
from typing import Any, TypeVar

Item = TypeVar("Item")
# All processes must have started within this time of each other.
LONGEST_START = timedelta(minutes=30)
# A process waits this long for the slowest one; a process that died is noticed at once.
LONGEST_WAIT = timedelta(days=7)


@dataclass
class Ranks:
    """This process among those that do one piece of work together.

    Every process takes every n-th item, so that all agree on the shares without a word, and what a
    process left unfinished is found in the same place when the same command runs again. Nothing is
    sent between processes but results at the end. A context manager: entering it waits until all
    have started, leaving it ends the group.

    Args:
        rank: Index of this process.
        count: Number of processes.
        local_rank: Index of this process on its machine, which is that of its GPU.
        local_count: Number of processes on this machine.

    Raises:
        ValueError: If `rank` is not from 0 to `count` - 1.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1
    _group: Any = field(default=None, init=False)
    _has_connected: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.count:
            raise ValueError(
                f"`rank` must be from 0 to {self.count - 1} for {self.count} processes, got "
                f"{self.rank}; start all processes by one launcher."
            )

    @classmethod
    def from_environment(cls) -> Ranks:
        """The place that a launcher gave this process; alone where there is none."""
        if any(name not in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR")):
            return cls()
        return cls(
            rank=int(os.environ["RANK"]),
            count=int(os.environ["WORLD_SIZE"]),
            local_rank=int(os.environ.get("LOCAL_RANK", 0)),
            local_count=int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
        )

    @property
    def is_main(self) -> bool:
        """Whether this process puts the results together and writes them."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> list[Item]:
        """The items of this process: every n-th, beginning with its own index."""
        return list(items[self.rank :: self.count])

    def gather(self, value: Any) -> list[Any] | None:
        """Waits for all processes and hands their values, in order, to the main one.

        Args:
            value: Anything that can be pickled.

        Returns:
            The values by rank in the main process, None in the others.

        Raises:
            RuntimeError: If another process ended early.
        """
        if self.count == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] | None = [None] * self.count if self.is_main else None
        try:
            dist.gather_object(value, values, dst=0, group=self._connected())
        except RuntimeError as error:
            raise RuntimeError(
                f"Process {self.rank} lost another one of {self.count} ({error}); run the same "
                "command again to go on."
            ) from error
        return values

    def wait(self) -> None:
        """Waits until all processes are here.

        Raises:
            RuntimeError: If another process ended early.
        """
        if self.gather(None) is not None and self.count == 1:
            return
        self.spread(None)

    def spread(self, value: Any) -> Any:
        """Hands a value of the main process to all.

        Raises:
            RuntimeError: If another process ended early.
        """
        if self.count == 1:
            return value
        import torch.distributed as dist

        values = [value]
        try:
            dist.broadcast_object_list(values, src=0, group=self._connected())
        except RuntimeError as error:
            raise RuntimeError(
                f"Process {self.rank} lost the main one ({error}); run the same command again to "
                "go on."
            ) from error
        return values[0]

    def device(self, best: str) -> str:
        """The device of this process: its own GPU where `best` is "cuda"."""
        if best != "cuda" or self.count == 1:
            return best
        import torch

        return f"cuda:{self.local_rank % max(torch.cuda.device_count(), 1)}"

    def _connected(self) -> Any:
        """The group of the processes, made on first use."""
        import torch.distributed as dist

        if self._group is None:
            if not dist.is_initialized():
                dist.init_process_group("gloo", timeout=LONGEST_START)
                self._has_connected = True
            self._group = dist.new_group(backend="gloo", timeout=LONGEST_WAIT)
        return self._group

    def __enter__(self) -> Ranks:
        if self.count > 1:  # now, while all begin: the first result may be hours away
            self._connected()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._group is not None:
            import torch.distributed as dist

            dist.destroy_process_group(None if self._has_connected else self._group)
            self._group, self._has_connected = None, False
