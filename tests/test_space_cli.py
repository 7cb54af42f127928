"""`amd-hf demo` as a user starts it: served, with examples, ended by Ctrl+C without traces."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

pytest.importorskip("gradio", reason="the demo extra is not installed")

PATIENCE = 300  # seconds; a start takes about 10 on a free machine
COMMAND = [sys.executable, "-m", "amd_hf.cli.main", "demo"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(folder: Path, port: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, "--port", str(port)],
        cwd=folder,
        env={**os.environ, "TMPDIR": str(folder), "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A test run that was started in the background ignores Ctrl+C, and so would its children.
        preexec_fn=_default_interrupt,
    )


def _default_interrupt() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize(
    "end", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_the_page_is_served_and_leaves_nothing_behind(tmp_path: Path, end: signal.Signals) -> None:
    port = free_port()
    process = start(tmp_path, port)
    try:
        deadline = time.monotonic() + PATIENCE
        config = ""
        while not config and time.monotonic() < deadline and process.poll() is None:
            try:
                config = httpx.get(f"http://127.0.0.1:{port}/config", timeout=5).text
            except httpx.HTTPError:
                time.sleep(0.3)
        assert "Objects without labels" in config
        assert "generated_2.jpg" in config
        assert "generated_22.mp4" in config
        assert list(tmp_path.glob("amd-demo-*"))
        process.send_signal(end)
        output, _ = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in output
    assert process.returncode in (0, 130)
    assert not list(tmp_path.glob("amd-demo-*"))


@pytest.mark.slow
def test_a_taken_port_is_one_sentence(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process = start(tmp_path, int(taken.getsockname()[1]))
        output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert "The demo cannot be served:" in output
    assert "Traceback" not in output


def test_without_gradio_the_extra_is_named(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['gradio'] = None\n"
        "from amd_hf.cli.main import main; sys.exit(main(['demo']))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert result.stderr.strip().endswith('pip install "amd-hf[demo]"')
