"""Puts the demo under load on this machine and says what came of it.

    python scripts/load_test.py --clients 16 --minutes 5

Starts `amd-hf demo` with the bundled checkpoint on a free port of 127.0.0.1. Every client is a
visitor of its own who asks again as soon as the answer is there: mostly for an image, now and then
for a video with adaptation, and sometimes leaves in the middle of a long one. Prints one JSON
object: answers and their latency percentiles, refusals of the queue, errors, memory, open files
and threads before and after, the seconds until an abandoned job is freed, and what is left on the
disk. Exit code 1 if an error came, a job was not freed, or something stayed behind.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
from PIL import Image

IMAGE, VIDEO = "/segment_image", "/segment_video"
IMAGE_SIZE, CLIP_SIZE = (120, 160), (64, 96)
SHORT_CLIP, LONG_CLIP = 4, 24
SHORT_STEPS, LONG_STEPS = 5, 100
SHARES = {"image": 0.85, "video": 0.1, "leave": 0.05}
QUEUE_ANSWERS = ("queue is full", "too many")
PERCENTILES = (50, 90, 99)
SETTLE_SECONDS = 20.0
MAX_GROWTH_MEGABYTES = 150.0
PATIENCE = 900.0


@dataclass
class Tally:
    """What the clients saw; shared by their threads.

    Attributes:
        latencies: Seconds of every answer, by kind of request.
        refused: Answers of a full queue.
        left: Jobs that were abandoned.
        errors: Messages of all other failures, counted.
    """

    latencies: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    refused: int = 0
    left: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    lock: Any = field(default_factory=threading.Lock)


@dataclass(frozen=True)
class Files:
    """What the clients upload."""

    image: Path
    short_clip: Path
    long_clip: Path


class Server:
    """`amd-hf demo` as a child process that writes below `folder` only.

    Args:
        folder: Folder of its temporary files.
    """

    def __init__(self, folder: Path) -> None:
        import psutil  # type: ignore[import-untyped]

        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self.log = folder / "demo.log"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        words = [sys.executable, "-m", "amd_hf.cli.main", "demo", "--port", str(port)]
        environment = {**os.environ, "TMPDIR": str(self.temporary), "HF_HUB_OFFLINE": "1"}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(words, env=environment, stdout=log, stderr=log)
        self.monitor = psutil.Process(self.process.pid)

    def wait(self) -> None:
        """Waits until the page is served.

        Raises:
            RuntimeError: If it is not within some minutes.
        """
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                with urlopen(self.url, timeout=5):
                    return
            except OSError:
                time.sleep(0.5)
        raise RuntimeError(f"The demo did not start:\n{self.log.read_text()[-2000:]}")

    def resources(self) -> dict[str, float]:
        """Resident megabytes, open files and threads of the server."""
        with self.monitor.oneshot():
            return {
                "megabytes": round(self.monitor.memory_info().rss / 2**20, 1),
                "open_files": self.monitor.num_fds(),
                "threads": self.monitor.num_threads(),
            }

    def job_folders(self) -> list[str]:
        """Folders of jobs that are running or were forgotten."""
        # The server's own folder has the same beginning and holds everything else.
        return [str(path) for path in self.temporary.glob("amd-demo-*/amd-demo-*")]

    def stop(self) -> list[str]:
        """Ends the server as a service manager does; returns what it leaves on the disk."""
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return ["the server did not end within 60 s"]
        return [path.name for path in self.temporary.iterdir()]


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Returns the arguments of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=16, help="visitors at the same time")
    parser.add_argument("--minutes", type=float, default=5.0, help="length of the load")
    parser.add_argument("--seed", type=int, default=0, help="seed of what the visitors do")
    arguments = parser.parse_args(words)
    if arguments.clients < 1 or not arguments.minutes > 0:
        parser.error("`--clients` must be at least 1 and `--minutes` positive.")
    return arguments


def main(words: list[str] | None = None) -> int:
    """Runs the load and prints what was measured; returns the exit code."""
    arguments = parse_arguments(words)
    # gradio_client leaves its event streams to the garbage collector.
    warnings.simplefilter("ignore", ResourceWarning)
    warnings.simplefilter("ignore", DeprecationWarning)
    with tempfile.TemporaryDirectory(prefix="amd-load-") as name:
        result = measure(Path(name), arguments)
    print(json.dumps(result, indent=2))
    return 1 if result["problems"] else 0


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Serves, loads, waits until all is quiet again, and returns the figures."""
    files = write_files(folder)
    server, tally = Server(folder), Tally()
    try:
        server.wait()
        warm_up(server, files, folder)
        before = server.resources()
        begin = time.monotonic()
        peak = run_clients(server, files, folder, tally, arguments)
        seconds = time.monotonic() - begin
        freed = seconds_until_freed(server, files, folder)
        time.sleep(SETTLE_SECONDS)
        after, forgotten = server.resources(), server.job_folders()
    finally:
        left = server.stop()
    num_answers = sum(map(len, tally.latencies.values()))
    result = {
        "clients": arguments.clients,
        "minutes": round(seconds / 60, 1),
        "load_average": round(os.getloadavg()[0], 1),
        "cores": os.cpu_count(),
        "answers": num_answers,
        "answers_per_minute": round(60 * num_answers / seconds, 1),
        "latency_seconds": {kind: percentiles(v) for kind, v in sorted(tally.latencies.items())},
        "refused_by_the_queue": tally.refused,
        "abandoned_jobs": tally.left,
        "errors": dict(tally.errors),
        "before": before,
        "peak_megabytes": peak,
        "after": after,
        "seconds_until_an_abandoned_job_is_freed": freed,
        "forgotten_job_folders": len(forgotten),
        "left_after_the_end": left,
        "server_tracebacks": server.log.read_text().count("Traceback (most recent call last)"),
    }
    return result | {"problems": problems_of(result)}


def problems_of(result: dict[str, Any]) -> list[str]:
    """What of a result is not as promised."""
    problems = [f"error: {message}" for message in result["errors"]]
    if result["seconds_until_an_abandoned_job_is_freed"] is None:
        problems.append("an abandoned job was not freed")
    if result["server_tracebacks"]:
        problems.append("the server's log holds tracebacks")
    if not result["answers"]:
        problems.append("no request was answered")
    growth = result["after"]["megabytes"] - result["before"]["megabytes"]
    if growth > MAX_GROWTH_MEGABYTES:
        problems.append(f"memory grew by {growth:.0f} MB")
    if result["forgotten_job_folders"] or result["left_after_the_end"]:
        problems.append("folders of jobs or of the server were left behind")
    return problems


def write_files(folder: Path) -> Files:
    """Writes an image and two clips of generated objects."""
    from amd_hf.data.synthetic_objects import generate_clip
    from amd_hf.video_amd import VideoWriter

    image = folder / "image.jpg"
    Image.fromarray(generate_clip(1, *IMAGE_SIZE, 2)[0][0]).save(image)
    clips = []
    for num_frames in (SHORT_CLIP, LONG_CLIP):
        clips.append(folder / f"clip_{num_frames}.mp4")
        with VideoWriter(clips[-1], 12) as writer:
            for frame in generate_clip(num_frames, *CLIP_SIZE, 2)[0]:
                writer.write(frame)
    return Files(image, *clips)


@contextmanager
def visitor(server: Server, folder: Path) -> Iterator[Any]:
    """A client with a session of its own; its downloads go when it leaves."""
    from gradio_client import Client  # type: ignore[import-untyped]

    with tempfile.TemporaryDirectory(dir=folder) as downloads:
        client = Client(server.url, download_files=downloads, verbose=False)
        try:
            yield client
        finally:
            client.close()


def submit(client: Any, files: Files, kind: str) -> Any:
    """Sends one request and returns its job."""
    from gradio_client import handle_file

    if kind == "image":
        return client.submit(handle_file(str(files.image)), api_name=IMAGE)
    clip, steps = files.short_clip, SHORT_STEPS
    if kind == "leave":
        clip, steps = files.long_clip, LONG_STEPS
    return client.submit(handle_file(str(clip)), steps, api_name=VIDEO)


def warm_up(server: Server, files: Files, folder: Path) -> None:
    """One answer of each kind, so that the model is loaded and memory has its normal size."""
    with visitor(server, folder) as client:
        for kind in ("image", "video", "image"):
            submit(client, files, kind).result(PATIENCE)


def run_clients(
    server: Server, files: Files, folder: Path, tally: Tally, arguments: argparse.Namespace
) -> float:
    """Runs all clients until the time is over; returns the largest memory in megabytes."""
    end = time.monotonic() + 60 * arguments.minutes
    threads = [
        threading.Thread(
            target=visit, args=(server, files, folder, tally, end, f"{arguments.seed} {number}")
        )
        for number in range(arguments.clients)
    ]
    for thread in threads:
        thread.start()
    peak = 0.0
    while any(thread.is_alive() for thread in threads):
        peak = max(peak, server.resources()["megabytes"])
        time.sleep(1.0)
    return peak


def visit(server: Server, files: Files, folder: Path, tally: Tally, end: float, seed: str) -> None:
    """Asks again and again until `end`; a visitor who leaves comes back as a new one."""
    choose = random.Random(seed)
    while time.monotonic() < end:
        with visitor(server, folder) as client:
            while time.monotonic() < end:
                (kind,) = choose.choices(list(SHARES), list(SHARES.values()))
                if kind == "leave":
                    submit(client, files, kind)
                    time.sleep(choose.uniform(0.5, 5.0))
                    with tally.lock:
                        tally.left += 1
                    break
                ask(client, files, kind, tally)


def ask(client: Any, files: Files, kind: str, tally: Tally) -> None:
    """One request and its answer."""
    begin = time.monotonic()
    try:
        submit(client, files, kind).result(PATIENCE)
    except Exception as error:  # noqa: BLE001 (whatever the client raises is what is counted)
        text = f"{type(error).__name__}: {error}"[:200]
        with tally.lock:
            if any(answer in text.lower() for answer in QUEUE_ANSWERS):
                tally.refused += 1
            else:
                tally.errors[f"{kind}: {text}"] += 1
        return
    with tally.lock:
        tally.latencies[kind].append(time.monotonic() - begin)


def seconds_until_freed(server: Server, files: Files, folder: Path) -> float | None:
    """Seconds from a visitor's leaving until the server has ended the long job; None if never."""
    wait_for_jobs(server, 0)
    with visitor(server, folder) as client:
        submit(client, files, "leave")
        if not wait_for_jobs(server, 1):
            return None
        time.sleep(2.0)
    begin = time.monotonic()
    return round(time.monotonic() - begin, 1) if wait_for_jobs(server, 0) else None


def wait_for_jobs(server: Server, number: int) -> bool:
    """Waits until the server has that many jobs; False if it never does."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if len(server.job_folders()) == number:
            return True
        time.sleep(0.1)
    return False


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Number of answers and percentiles of their seconds."""
    values = np.percentile(seconds, PERCENTILES).round(2).tolist()
    return {"answers": len(seconds)} | {
        f"p{p}": value for p, value in zip(PERCENTILES, values, strict=True)
    }


if __name__ == "__main__":
    sys.exit(main())
