"""The families of input: what a case, a reader of it and a verdict are."""

from __future__ import annotations

import traceback
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any, ClassVar, Literal

FAMILY_MODULES = {
    "images": "media",
    "videos": "media",
    "masks": "media",
    "shards": "archives",
    "configs": "documents",
    "checkpoints": "documents",
    "arguments": "commands",
    "selftest": "selftest",
}
FAMILY_NAMES = tuple(name for name in FAMILY_MODULES if name != "selftest")
DOCUMENTED: tuple[type[Exception], ...] = (ValueError, OSError)
MOST_TRACEBACK_LINES = 14


@dataclass(frozen=True)
class Reader:
    """One function of the package that reads the input of a case.

    Attributes:
        name: What reports call it.
        read: Reads; the result does not matter.
        refuses: The exceptions that its documentation names.
        names: The message of a refusal must hold one of these, such as the name of the file.
    """

    name: str
    read: Callable[[], Any]
    refuses: tuple[type[Exception], ...] = DOCUMENTED
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """Damaged input on disk, and what reads it.

    Attributes:
        what: The valid sample and how it was damaged.
        readers: Called one after the other.
    """

    what: str
    readers: tuple[Reader, ...]


@dataclass(frozen=True)
class Verdict:
    """What a reader did with a case; `detail` says more where it failed."""

    kind: Literal["accepted", "refused", "failed"]
    detail: str = ""


class Family(ABC):
    """Input of one kind.

    Args:
        folder: For the valid samples, which are written once.
    """

    name: ClassVar[str]

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def valid(self, folder: Path) -> Iterator[Case]:
        """Every sample as it is, which all its readers must accept."""

    @abstractmethod
    def case(self, random: Random, folder: Path) -> Case:
        """One damaged input.

        Args:
            random: Source of all draws.
            folder: An empty folder to write it to.
        """


def open_family(name: str, folder: Path) -> Family:
    """The family of that name, with its samples in `folder`."""
    module = import_module(f"tests.fuzzing.{FAMILY_MODULES[name]}")
    folder.mkdir(parents=True, exist_ok=True)
    kinds = (kind for kind in vars(module).values() if isinstance(kind, type))
    for kind in kinds:
        if issubclass(kind, Family) and getattr(kind, "name", None) == name:
            return kind(folder)
    raise LookupError(f"tests.fuzzing.{FAMILY_MODULES[name]} has no family {name!r}.")


def case_random(family: str, seed: int, number: int) -> Random:
    """The generator of one case: the same on every machine and for every order of the cases."""
    return Random(f"{seed}/{family}/{number}")


def judge(reader: Reader) -> Verdict:
    """Calls a reader and says whether it kept to its documentation."""
    try:
        reader.read()
    except reader.refuses as error:
        text = str(error)
        if not text.strip():
            return Verdict("failed", f"{type(error).__name__} without a message")
        if reader.names and not any(name in text for name in reader.names):
            named = " or ".join(map(repr, reader.names))
            return Verdict("failed", f"{type(error).__name__} does not name {named}: {text[:300]}")
        return Verdict("refused")
    except BaseException as error:  # noqa: BLE001 (whatever else comes out is a finding)
        lines = "".join(traceback.format_exception(error)).splitlines()
        return Verdict("failed", "\n".join(lines[-MOST_TRACEBACK_LINES:])[-2000:])
    return Verdict("accepted")


def is_one_of_four(data: bytes) -> bool:
    """Chooses a quarter of all inputs, by their content, for a reader that takes long."""
    return zlib.crc32(data) % 4 == 0
