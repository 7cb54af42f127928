"""Pictures in Gradio's cache, written once and by rename.

Gradio names a picture by its content and writes it anew for every visitor. While one downloads the
result of an example, another one's click on the same example would empty the file under its hands.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from gradio import processing_utils
from PIL import Image

from amd_hf.whole_files import PARTIAL_PREFIX


def save_pil_to_cache(
    img: Image.Image, cache_dir: str, name: str = "image", format: str = "webp"
) -> str:
    """Does what Gradio's function of this name does, but never rewrites a file that is there.

    Args:
        img: The picture.
        cache_dir: Folder of the component.
        name: File name without suffix.
        format: File format and suffix.

    Returns:
        The path of the file.
    """
    data = processing_utils.encode_pil_to_bytes(img, format)
    folder = Path(cache_dir) / processing_utils.hash_bytes(data)
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / f"{name}.{format}").resolve()
    try:
        os.utime(file)  # its age counts from its last use
    except FileNotFoundError:
        descriptor, staging = tempfile.mkstemp(prefix=PARTIAL_PREFIX, dir=folder)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
        os.replace(staging, file)
    return str(file)


def keep_pictures_whole() -> None:
    """Puts `save_pil_to_cache` into the place of Gradio's own."""
    processing_utils.save_pil_to_cache = save_pil_to_cache
