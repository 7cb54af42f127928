"""What a command tells: results on stdout, progress and problems on stderr."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub.utils import tqdm


@dataclass
class Console:
    """Messages of one command.

    Args:
        is_json: Results are JSON lines; otherwise sentences.
        is_quiet: No progress bars and no notes.
        is_mute: Failures are counted and not told: another process tells them.
        is_holding: Lines for stdout are kept in `held` until `release`, so that those of several
            processes can be put in order.
    """

    is_json: bool = False
    is_quiet: bool = False
    is_mute: bool = False
    is_holding: bool = False
    failures: list[tuple[str, str]] = field(default_factory=list)
    held: list[str] = field(default_factory=list)

    def result(self, record: dict[str, Any], sentence: str) -> None:
        """One finished input, on stdout."""
        self.line(json.dumps(record) if self.is_json else sentence)

    def line(self, text: str) -> None:
        """One line for stdout."""
        if self.is_holding:
            self.held.append(text)
            return
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    def release(self) -> list[str]:
        """The lines that were held back since the last call."""
        held, self.held = self.held, []
        return held

    def note(self, sentence: str) -> None:
        """Something worth knowing, on stderr."""
        if not (self.is_quiet or self.is_mute):
            tqdm.write(sentence, file=sys.stderr)

    def fail(self, source: str, reason: str) -> None:
        """One failed input: on stderr, in the JSON lines, and counted for `finish`."""
        reason = " ".join(reason.split())
        self.failures.append((source, reason))
        if self.is_mute:
            return
        tqdm.write(f"error: {reason}", file=sys.stderr)
        if self.is_json:
            self.line(json.dumps({"input": source, "error": reason}))

    def bar(self, description: str, total: int | None, unit: str) -> Any:
        """A progress bar on stderr; none where stderr is no terminal."""
        return tqdm(
            total=total, desc=description, unit=unit, disable=self.is_quiet or None, leave=False
        )
