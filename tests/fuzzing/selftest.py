"""Input that breaks its reader in every way, to show that the fuzzer notices each of them."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from tests.fuzzing.families import Case, Family, Reader

KINDS = ("accept", "refuse", "unnamed", "silent", "wrong type", "crash", "hang")
SECONDS = 60.0


def reader_of(kind: str) -> Callable[[], None]:
    """What reads and fails in one way."""

    def read() -> None:
        if kind == "refuse":
            raise ValueError("case.bin is damaged.")
        if kind == "unnamed":
            raise ValueError("It is damaged.")
        if kind == "silent":
            raise ValueError
        if kind == "wrong type":
            raise KeyError("x")
        if kind == "crash":
            ctypes.string_at(0)
        if kind == "hang":
            time.sleep(SECONDS)

    return read


class Broken(Family):
    """Readers that do what no reader may do."""

    name = "selftest"

    def valid(self, folder: Path) -> Iterator[Case]:
        """One input that is accepted."""
        yield Case("accept", (Reader("reader", reader_of("accept")),))

    def case(self, random: Random, folder: Path) -> Case:
        """An input whose reader fails in a drawn way."""
        kind = random.choice(KINDS)
        (folder / "case.bin").write_bytes(kind.encode())
        return Case(kind, (Reader("reader", reader_of(kind), (ValueError,), ("case.bin",)),))
