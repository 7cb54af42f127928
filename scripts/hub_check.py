"""Builds the wheel, installs it into a clean environment and uses it there without a network.

Run by `make hub-check`. The check sees what a user of the wheel sees: no source tree, no extras.
"""

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

OFFLINE_USE = """
import sys
from pathlib import Path
import numpy as np
from PIL import Image
import amd_hf
from transformers import AutoModel, pipeline

extras = {"accelerate", "datasets", "evaluate", "gradio", "cv2", "skimage"} & set(sys.modules)
assert not extras, f"importing amd_hf imported {sorted(extras)}"
assert Path(amd_hf.DEFAULT_CHECKPOINT, "model.safetensors").is_file(), amd_hf.DEFAULT_CHECKPOINT
image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8))
segments = pipeline("zero-shot-object-segmentation")(image, return_segments=True)
assert len(segments) == 5, len(segments)
assert all(segment["mask"].size == image.size for segment in segments)
model = AutoModel.from_pretrained(amd_hf.DEFAULT_CHECKPOINT)
print(f"{type(model).__name__} from {amd_hf.__file__}: {len(segments)} segments, offline")
"""


def run(*command: str, cwd: Path, **environment: str) -> None:
    """Runs a command and stops with its output when it fails."""
    result = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True
    )
    print(result.stdout.strip())
    if result.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{result.stderr}")


def main() -> None:
    """Builds, installs and tries the wheel in temporary folders."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        dist = str(folder / "dist")
        run(sys.executable, "-m", "build", "--wheel", "--outdir", dist, cwd=ROOT)
        wheel = next((folder / "dist").glob("*.whl"))
        venv.create(folder / "env", with_pip=True)
        python = str(folder / "env" / "bin" / "python")
        constraints = str(ROOT / "constraints.txt")
        pip = (python, "-m", "pip", "install", "--quiet", "-c", constraints, str(wheel))
        run(*pip, cwd=folder)
        run(python, "-c", OFFLINE_USE, cwd=folder, HF_HUB_OFFLINE="1", PYTHONPATH="")
        run(str(folder / "env" / "bin" / "amd-hf"), "--help", cwd=folder)
        print(f"{wheel.name}: {wheel.stat().st_size / 2**20:.1f} MiB, works from a clean install")


if __name__ == "__main__":
    main()
