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
    """

    is_json: bool = False
    is_quiet: bool = False
    failures: list[tuple[str, str]] = field(default_factory=list)

    def result(self, record: dict[str, Any], sentence: str) -> None:
        """One finished input, on stdout."""
        sys.stdout.write((json.dumps(record) if self.is_json else sentence) + "\n")
        sys.stdout.flush()

    def note(self, sentence: str) -> None:
        """Something worth knowing, on stderr."""
        if not self.is_quiet:
            tqdm.write(sentence, file=sys.stderr)

    def fail(self, source: str, reason: str) -> None:
        """One failed input: on stderr, in the JSON lines, and counted for `finish`."""
        reason = " ".join(reason.split())
        self.failures.append((source, reason))
        tqdm.write(f"error: {reason}", file=sys.stderr)
        if self.is_json:
            sys.stdout.write(json.dumps({"input": source, "error": reason}) + "\n")
            sys.stdout.flush()

    def bar(self, description: str, total: int | None, unit: str) -> Any:
        """A progress bar on stderr; none where stderr is no terminal."""
        return tqdm(
            total=total, desc=description, unit=unit, disable=self.is_quiet or None, leave=False
        )
