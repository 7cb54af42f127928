"""The Hugging Face Space: the page of `amd-hf demo` with the example files beside this one.

Set the variable `AMD_MODELS` of the Space to Hub ids (separated by spaces) to offer more models.
"""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

try:
    import spaces  # noqa: F401 - ZeroGPU must be there before torch
except ImportError:
    print("No ZeroGPU: running on this machine's own CPU or GPU.")

from amd_hf.cli.demo_app import LAUNCH, build_app

EXAMPLES = Path(__file__).resolve().parent / "examples"

demo = build_app(
    models=os.environ.get("AMD_MODELS", "").split(),
    images=sorted(EXAMPLES.glob("*.jpg")),
    videos=sorted(EXAMPLES.glob("*.mp4")),
)

if __name__ == "__main__":
    demo.launch(**LAUNCH)
