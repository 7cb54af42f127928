"""A Python with a few named packages and what they need, and nothing else: links, no downloads."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

BASE = ("torch", "transformers", "pillow", "numpy", "safetensors", "av")


def make_site(folder: Path, packages: tuple[str, ...] = BASE) -> Path:
    """Returns a folder that holds links to `packages` and everything that they require."""
    folder.mkdir(parents=True)
    waiting, seen = list(packages), set()
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in seen:
            continue
        seen.add(name)
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # required on another platform only
        for file in distribution.files or []:
            top = file.parts[0]
            target = Path(str(distribution.locate_file(top)))
            if top not in ("..", "__pycache__") and target.exists():
                link = folder / top
                if not link.exists():
                    link.symlink_to(target)
        for text in distribution.requires or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return folder


def run_python(
    code: str, site: Path, cwd: Path, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs `code` where only the packages of `site` can be imported, without a terminal."""
    variables = {
        "PATH": os.environ["PATH"],
        "HOME": str(cwd),
        "PYTHONPATH": str(site),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2"),
        "HF_HOME": str(cwd / "hf"),
        "HF_HUB_OFFLINE": "1",
        **(environment or {}),
    }
    return subprocess.run(
        [sys.executable, "-S", "-c", code],
        cwd=cwd,
        env=variables,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=300,
        check=False,
    )
