"""Builds an environment at each end of the supported versions and runs the tests in it.

    python scripts/compatibility.py --ends oldest newest
    python scripts/compatibility.py --ends oldest --python python3.12 -- tests/test_pipeline.py

The oldest end holds every dependency at the lower bound that `pyproject.toml` states, the newest
end what an installer takes today; both hold the same torch. What only tests need is always new.
Warnings are errors in the tests, so what a version has deprecated shows. Environments lie in the
folder and are used again; `uv` builds them where it is installed, pip elsewhere. Words after `--`
go to pytest. Prints one JSON object; exit code 1 if an environment or a test failed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ENDS = ("oldest", "newest")
TORCH = "torch==2.13.0"
EXTRAS = ("train", "eval", "demo", "deploy")
TEST_TOOLS = (
    "gradio-client",
    "hypothesis",
    "playwright",
    "psutil",
    "pysodmetrics",
    "pytest",
    "torchmetrics",
)
REQUIREMENT = re.compile(r"^(?P<name>[\w.-]+)(?P<limits>.*)$")
LOWER_BOUND = re.compile(r">=\s*([\w.]+)")
LISTED = ("torch", "transformers", "huggingface-hub", "datasets", "accelerate", "gradio", "numpy")
VERSIONS = """
import json, platform, sys
from importlib.metadata import version
names = sys.argv[1:]
print(json.dumps({"python": platform.python_version()} | {name: version(name) for name in names}))
"""


def requirements(end: str, pyproject: Path = ROOT / "pyproject.toml") -> list[str]:
    """What to install for one end.

    Args:
        end: "oldest" or "newest".
        pyproject: The file that states the dependencies.

    Returns:
        One requirement per line; at the oldest end every one is pinned to its lower bound.

    Raises:
        ValueError: If a dependency states no lower bound.
    """
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    stated = list(project["dependencies"])
    for extra in EXTRAS:
        stated += project["optional-dependencies"][extra]
    found = {}
    for text in stated:
        match = REQUIREMENT.match(text)
        assert match is not None
        name, limits = match["name"], match["limits"]
        bound = LOWER_BOUND.search(limits)
        if bound is None:
            raise ValueError(f"{text!r} in {pyproject.name} has no lower bound; add one that ran.")
        found[name] = f"{name}=={bound[1]}" if end == "oldest" else text
    return [TORCH, *(text for name, text in found.items() if name != "torch"), *TEST_TOOLS]


def build(end: str, python: str, folder: Path) -> Path:
    """Makes the environment of one end, or finds the one of the same requirements.

    Returns:
        Its interpreter.

    Raises:
        subprocess.CalledProcessError: If the installer finds no solution.
    """
    wanted = "\n".join(requirements(end)) + "\n"
    place = folder / f"{end}-{Path(python).name}"
    interpreter, list_file = place / "bin" / "python", place / "requirements.txt"
    if list_file.is_file() and list_file.read_text() == wanted:
        return interpreter
    shutil.rmtree(place, ignore_errors=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    waiting = place.with_suffix(".txt")
    waiting.write_text(wanted)
    uv = shutil.which("uv")
    if uv:
        run([uv, "venv", "--quiet", "--python", python, str(place)])
        install = [uv, "pip", "install", "--quiet", "--python", str(interpreter)]
    else:
        run([python, "-m", "venv", str(place)])
        install = [str(interpreter), "-m", "pip", "install", "--quiet", "--prefer-binary"]
    run([*install, "-r", str(waiting)])
    run([*install, "--no-deps", "-e", str(ROOT)])
    waiting.replace(list_file)  # the mark of an environment that is complete
    return interpreter


def run(words: list[str]) -> None:
    """Runs a command of the installer; its output is shown."""
    subprocess.run(words, check=True, stdout=sys.stderr)


def test(interpreter: Path, words: list[str]) -> dict[str, Any]:
    """Runs pytest in an environment; returns versions, the closing line and the exit code."""
    listed = subprocess.run(
        [str(interpreter), "-c", VERSIONS, *LISTED], capture_output=True, text=True, check=True
    )
    begin = time.monotonic()
    command = [str(interpreter), "-m", "pytest", "-q", "-p", "no:cacheprovider", *words]
    log = interpreter.parent.parent / "pytest.log"
    with log.open("w") as output:
        status = subprocess.run(
            command,
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PATH": f"{interpreter.parent}:{os.environ['PATH']}"},
            check=False,
        ).returncode
    lines = log.read_text(errors="replace").strip().splitlines()
    return {
        "versions": json.loads(listed.stdout),
        "status": status,
        "result": lines[-1] if lines else "no output",
        "failed": [line for line in lines if line.startswith(("FAILED", "ERROR"))],
        "seconds": round(time.monotonic() - begin),
        "log": str(log),
    }


def main(words: list[str] | None = None) -> int:
    """Builds, tests and prints; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ends", nargs="+", choices=ENDS, default=list(ENDS))
    parser.add_argument("--python", default=sys.executable, help="interpreter to build with")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "compat")
    parser.add_argument("pytest", nargs="*", help="words for pytest, after --")
    arguments = parser.parse_args(words)
    results = {}
    for end in arguments.ends:
        try:
            interpreter = build(end, arguments.python, arguments.folder.resolve())
            results[end] = test(interpreter, arguments.pytest)
        except (subprocess.CalledProcessError, ValueError) as error:
            results[end] = {"status": 1, "result": str(error)}
    print(json.dumps(results, indent=2))
    return 1 if any(result["status"] for result in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
