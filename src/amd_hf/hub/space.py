"""The Space in a folder: the page, its examples, and the wheel of this package."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from huggingface_hub import constants

APP_FILES = ("app.py", "README.md", "requirements.txt")
EXAMPLE_SUFFIXES = (".jpg", ".mp4", ".md")


def export_space(
    app_dir: str | Path, output_dir: str | Path, wheel: str | Path, repo_id: str
) -> Path:
    """Writes everything that the Space holds.

    A Space installs `requirements.txt` before the other files of the repository are there, so the
    wheel is named by its address in the Space; the Space must be public, or run with a token that
    may read it.

    Args:
        app_dir: Folder of `app.py`, `README.md`, `requirements.txt` and `examples`.
        output_dir: Folder to create; it must be empty or absent.
        wheel: Wheel of this package (`python -m build --wheel`).
        repo_id: Where the Space is going, `"organization/name"`.

    Returns:
        The folder.

    Raises:
        ValueError: If a file is missing, `output_dir` holds files, or the wheel is another one.
    """
    app_dir, output_dir, wheel = Path(app_dir), Path(output_dir), Path(wheel)
    if not re.fullmatch(r"amd_hf-[\w.!+]+-py3-none-any\.whl", wheel.name) or not wheel.is_file():
        raise ValueError(f"`wheel` must be an existing amd_hf-*-py3-none-any.whl, got {wheel}.")
    if missing := [name for name in APP_FILES if not (app_dir / name).is_file()]:
        raise ValueError(
            f"`app_dir` must hold {', '.join(APP_FILES)}; {app_dir} lacks {missing[0]}."
        )
    if output_dir.exists() and any(output_dir.iterdir()):
        raise ValueError(
            f"`output_dir` must be empty or absent, got {output_dir} with files in it."
        )
    (output_dir / "examples").mkdir(parents=True)
    for name in APP_FILES:
        shutil.copyfile(app_dir / name, output_dir / name)
    for example in sorted((app_dir / "examples").iterdir()):
        if example.suffix in EXAMPLE_SUFFIXES:
            shutil.copyfile(example, output_dir / "examples" / example.name)
    shutil.copyfile(wheel, output_dir / wheel.name)
    address = f"{constants.ENDPOINT}/spaces/{repo_id}/resolve/main/{wheel.name}"
    _replace(output_dir / "requirements.txt", "amd-hf[demo]", f"amd-hf[demo] @ {address}")
    _replace(output_dir / "README.md", "ORG/NAME", repo_id)
    return output_dir


def _replace(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    if old not in text:
        raise ValueError(
            f"{file.name} of the Space must hold {old!r}, which is replaced by {new!r}."
        )
    file.write_text(text.replace(old, new), encoding="utf-8")
