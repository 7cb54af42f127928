"""All benchmarks by name."""

import difflib
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from amd_hf.data.annotations import Benchmark, shown
from amd_hf.data.davis import open_davis2016
from amd_hf.data.fbms import open_fbms59, open_fbms59_test
from amd_hf.data.saliency import SALIENCY_SETS, open_saliency
from amd_hf.data.segtrack import open_segtrackv2
from amd_hf.data.voc import open_voc2012

logger = logging.getLogger(__name__)

_READERS: dict[str, Callable[[Path], Benchmark]] = {
    "davis2016": open_davis2016,
    "segtrackv2": open_segtrackv2,
    "fbms59": open_fbms59,
    "fbms59-test": open_fbms59_test,
    **{name: partial(open_saliency, name) for name in SALIENCY_SETS},
    "voc2012": open_voc2012,
}

BENCHMARK_NAMES = tuple(_READERS)


def open_benchmark(
    name: str,
    root: str | Path,
    *,
    sequences: Sequence[str] | None = None,
    strict: bool = False,
) -> Benchmark:
    """The benchmark `name` as found under `root`.

    Args:
        name: One of `BENCHMARK_NAMES`.
        root: Folder of the data set, laid out as distributed.
        sequences: Names of the sequences to keep; None keeps all.
        strict: Whether an incomplete set is an error instead of a warning.

    Returns:
        The benchmark; nothing but folder listings was read so far.

    Raises:
        ValueError: If the name is unknown, the folder is not that benchmark, a sequence is
            unknown, a mask has no frame, nothing can be scored, or `strict` and it is incomplete.
    """
    reader = _READERS.get(name)
    if reader is None:
        raise ValueError(f"Unknown benchmark {name!r}; {_suggestion(name, BENCHMARK_NAMES)}")
    folder = Path(root).expanduser()
    if not os.path.isdir(folder):
        raise ValueError(f"The folder {folder} of {name} does not exist; pass its path.")
    benchmark = reader(folder)
    if not benchmark.is_complete:
        lack = f": {shown(benchmark.missing)}" if benchmark.missing else ""
        text = (
            f"{benchmark.title} is incomplete under {folder}: {benchmark.num_found} of "
            f"{benchmark.num_expected} annotated frames found{lack}."
        )
        if strict:
            raise ValueError(f"{text} Get the complete set or leave out `strict`.")
        logger.warning("%s Scores are those of a subset.", text)
    if sequences is not None:
        benchmark = _keep_sequences(benchmark, sequences)
    if benchmark.num_found == 0:
        raise ValueError(f"{folder} holds no annotated frame of {benchmark.title} to score.")
    return benchmark


def _keep_sequences(benchmark: Benchmark, names: Sequence[str]) -> Benchmark:
    """The benchmark with the named sequences only."""
    known = {sequence.name: sequence for sequence in benchmark.sequences}
    for name in names:
        if name not in known:
            raise ValueError(
                f"{benchmark.title} has no sequence {name!r} here; {_suggestion(name, known)}"
            )
    kept = tuple(sequence for sequence in benchmark.sequences if sequence.name in set(names))
    return replace(benchmark, sequences=kept)


def _suggestion(name: str, known: Iterable[str]) -> str:
    """`did you mean 'x'?` or the list of what there is."""
    names = list(known)
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(names)}."
