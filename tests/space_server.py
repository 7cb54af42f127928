"""The Space's own `app.py` in a child process, with a tiny model in place of the bundled one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import torch

from amd_hf import AMDConfig, AMDImageProcessor, AMDModel

SPACE = Path(__file__).resolve().parent.parent / "spaces"

SERVE = """
import sys
from amd_hf.cli import demo_models
port, checkpoint, space, *delete_cache = sys.argv[1:]
demo_models._MODELS[demo_models.BUNDLED] = checkpoint
sys.path.insert(0, space)
import app
print("delete_cache:", *app.demo.delete_cache)
if delete_cache:
    app.demo.delete_cache = tuple(map(int, delete_cache))
app.demo.launch(server_port=int(port), **app.LAUNCH)
"""


@dataclass(frozen=True)
class SpaceServer:
    """A running Space: its address, its folders, what it printed."""

    url: str
    temporary: Path
    gradio_files: Path
    log: Path

    def errors(self, start: int = 0) -> list[str]:
        """The last line of every traceback that it printed after the first `start` bytes."""
        return errors_in(self.log.read_bytes()[start:].decode())

    def job_folders(self) -> list[Path]:
        """Folders of jobs that are running, or that were left behind."""
        return list(self.temporary.glob("amd-demo-*"))

    def files(self) -> set[Path]:
        """Uploads and results that are kept."""
        return {path for path in self.gradio_files.rglob("*") if path.is_file()}


def errors_in(text: str) -> list[str]:
    """The last line of every traceback in a log: the first one behind the indented frames."""
    errors, is_inside = [], False
    for line in text.splitlines():
        if line.startswith("Traceback (most recent call last):"):
            is_inside = True
        elif is_inside and not line.startswith(" "):
            errors.append(line)
            is_inside = False
    return errors + ["an unfinished traceback"] * is_inside


@contextmanager
def space_server(
    folder: Path, delete_cache: tuple[int, int] | None = None
) -> Iterator[SpaceServer]:
    """Serves the Space from `folder` until the block ends.

    Args:
        folder: Folder for everything that the server writes.
        delete_cache: Seconds between two looks for old files, and the age at which they are old;
            None leaves what the Space itself sets.
    """
    temporary, files, log = folder / "tmp", folder / "tmp" / "gradio", folder / "log.txt"
    temporary.mkdir()
    torch.manual_seed(0)
    config = AMDConfig.tiny()
    AMDModel(config).save_pretrained(folder / "model")
    # Large enough that 100 adaptation steps last until a visitor can press Stop.
    processor = AMDImageProcessor.from_model_config(config, size={"shortest_edge": 320})
    processor.save_pretrained(folder / "model")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "TMPDIR": str(temporary),
        "GRADIO_TEMP_DIR": str(files),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_OFFLINE": "1",
    }
    arguments = [str(port), str(folder / "model"), str(SPACE), *map(str, delete_cache or ())]
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, *arguments],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_for(url, process, log)
        yield SpaceServer(url, temporary, files, log)
    finally:
        process.terminate()
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            with urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.3)
    raise RuntimeError(f"the Space did not start:\n{log.read_text()}")
