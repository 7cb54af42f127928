"""Small videos on disk for the tests of the data package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from amd_hf.data.synthetic_objects import generate_clip

SIZE = (48, 64)


def write_videos(
    root: Path, videos: Mapping[str, int], layout: str = "train/JPEGImages", step: int = 1
) -> Path:
    """Writes `videos` (name -> number of frames) as JPEGs numbered by `step`; returns `root`."""
    for seed, (name, num_frames) in enumerate(videos.items()):
        frames, _ = generate_clip(num_frames, *SIZE, seed=seed)
        folder = root / layout / name
        folder.mkdir(parents=True)
        for number, frame in enumerate(frames):
            Image.fromarray(frame).save(folder / f"{number * step:05d}.jpg", quality=90)
    return root


def write_video_file(path: Path, num_frames: int, rate: int = 10) -> np.ndarray:
    """Writes an H.264 file and returns its frames (T, H, W, 3) before encoding."""
    import av

    frames, _ = generate_clip(num_frames, *SIZE, seed=3)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "10", "g": "4"})
        stream.height, stream.width = SIZE
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return frames
