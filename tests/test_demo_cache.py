"""Equal pictures of two visitors share one file, which is never emptied while it is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the demo extra is not installed")

from gradio import processing_utils

from amd_hf.cli.demo_cache import keep_pictures_whole, save_pil_to_cache


def test_an_equal_picture_is_not_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processing_utils, "save_pil_to_cache", None)
    keep_pictures_whole()
    picture = np.zeros((8, 12, 3), dtype=np.uint8)
    first = Path(processing_utils.save_img_array_to_cache(picture, str(tmp_path), "png"))
    with first.open("rb") as reader:
        data = reader.read(4)
        second = Path(processing_utils.save_img_array_to_cache(picture, str(tmp_path), "png"))
        data += reader.read()
    assert first == second
    assert data == first.read_bytes()
    assert np.array_equal(np.asarray(Image.open(first)), picture)
    assert [path.name for path in tmp_path.rglob("*.*")] == ["image.png"]


def test_other_pictures_have_other_files(tmp_path: Path) -> None:
    paths = {save_pil_to_cache(Image.new("L", (4, 4), value), str(tmp_path)) for value in (1, 200)}
    assert len(paths) == 2
