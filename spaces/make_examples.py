"""Writes the example files of the Space; needs the `eval` extra for scikit-image's photos."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from skimage import data

from amd_hf.cli.demo import make_examples

EXAMPLES = Path(__file__).resolve().parent / "examples"
# Photos whose photographers or owners put them into the public domain; see SOURCES.md.
PHOTOS = {"astronaut": "astronaut", "cat": "chelsea", "coffee": "coffee", "rocket": "rocket"}


def main() -> None:
    """Writes photos and generated clips beside `SOURCES.md`."""
    for name, item in PHOTOS.items():
        Image.fromarray(getattr(data, item)()).save(EXAMPLES / f"{name}.jpg", quality=88)
    images, videos = make_examples(EXAMPLES)
    print(f"Wrote {len(PHOTOS)} photos, {len(images)} generated images and {len(videos)} clips.")


if __name__ == "__main__":
    main()
