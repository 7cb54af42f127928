"""Images, videos and masks, read as the package, its data readers and its app read them."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image

from amd_hf.cli.demo_uploads import read_uploaded_image, read_uploaded_video
from amd_hf.cli.inputs import plan_jobs
from amd_hf.data.annotations import (
    AnnotatedFrame,
    read_frame,
    read_labels,
    read_object_mask,
    read_reference,
)
from amd_hf.data.counting import SkippedPairError
from amd_hf.data.decoding import PairTransform
from amd_hf.data.fbms import open_fbms59_test
from amd_hf.data.semantic_folders import LabelledFile, LabelledFiles, open_semantic_folder
from amd_hf.data.semantic_images import check_masks, infer_num_labels, scan_masks
from amd_hf.data.sources_video import VideoFileSource
from amd_hf.frame_cache_amd import FrameCache
from amd_hf.image_io_amd import read_image
from amd_hf.training.moco_data import TwoViewTransform
from amd_hf.video_amd import FrameStream
from tests.fuzzing import samples
from tests.fuzzing.families import DOCUMENTED, Case, Family, Reader
from tests.fuzzing.mutations import mutate, mutate_json
from tests.fuzzing.repairs import repair_png

CROP = 32
SKIPS = (SkippedPairError,)


class Recorder:
    """Stands in for the console of the command line: keeps what it is told."""

    def __init__(self) -> None:
        self.failures: list[tuple[str, str]] = []

    def fail(self, source: str, reason: str) -> None:
        """Keeps the reason of a failed input."""
        self.failures.append((source, reason))

    def note(self, text: str) -> None:
        """Ignores notes."""


def planned(path: Path) -> None:
    """Plans a file and its folder as `amd-hf segment` does; a reported failure is a ValueError."""
    recorder: Any = Recorder()
    plan_jobs([str(path), str(path.parent)], recorder)
    if recorder.failures:
        raise ValueError(" ".join(reason for _, reason in recorder.failures))


def as_data_text(data: bytes) -> str:
    """The `data:image/...` text of an image file."""
    return "data:image/png;base64," + base64.b64encode(data).decode()


class Images(Family):
    """Image files of all formats, also under the name of another format."""

    name = "images"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.samples = samples.images()
        # A few videos among the donors: their bytes end up in files with the name of an image.
        self.donors = [*self.samples.values(), *samples.videos(folder).values()]
        self.transform = PairTransform("none", CROP)
        self.views = TwoViewTransform("none", CROP)

    def valid(self, folder: Path) -> Iterator[Case]:
        """Every image as it is; the app takes fewer formats than the package."""
        for name, data in self.samples.items():
            case = self._case(folder, name, data, name)
            is_taken = not name.endswith((".ppm", ".pgm", ".pbm"))
            yield Case(name, case.readers if is_taken else case.readers[:-1])

    def case(self, random: Random, folder: Path) -> Case:
        """One damaged image; PNGs get their checksums right again half of the time."""
        name = random.choice(list(self.samples))
        data, how = mutate(random, self.samples[name], self.donors)
        if name.endswith(".png") and random.random() < 0.5:
            data, how = repair_png(data), f"{how}+repair_png"
        return self._case(folder, random.choice((name, name, "other.jpg")), data, f"{name} {how}")

    def _case(self, folder: Path, name: str, data: bytes, what: str) -> Case:
        path = folder / name
        path.write_bytes(data)
        files = LabelledFiles([LabelledFile("x", path, path)], "samples")
        text, named = as_data_text(data), (name,)
        return Case(
            what,
            (
                Reader("read_image", partial(read_image, path), DOCUMENTED, named),
                Reader(
                    "read_image of text", partial(read_image, text), DOCUMENTED, ("data:image",)
                ),
                Reader("read_frame", partial(read_frame, path), DOCUMENTED, named),
                Reader("image_size", partial(files.image_size, 0), DOCUMENTED, named),
                Reader("amd-hf segment: plan", partial(planned, path), DOCUMENTED, named),
                Reader("PairTransform", partial(self.transform, data, data, 0), SKIPS),
                Reader("TwoViewTransform", partial(self.views, data, data, 0), SKIPS),
                Reader("app upload", partial(read_uploaded_image, str(path)), (ValueError,), named),
            ),
        )


class Videos(Family):
    """Video files of all containers, and videos and images under each other's names."""

    name = "videos"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.samples = samples.videos(folder)
        self.donors = [*self.samples.values(), *list(samples.images().values())[:6]]

    def valid(self, folder: Path) -> Iterator[Case]:
        """Every video as it is; training and the app take fewer containers than the command."""
        for name, data in self.samples.items():
            readers = self._case(folder, name, data, name).readers
            is_taken = name.endswith((".mp4", ".mov", ".webm", ".mkv", ".avi"))
            yield Case(name, readers if is_taken else readers[:2])

    def case(self, random: Random, folder: Path) -> Case:
        """One damaged video, one time in twenty under the name of an image."""
        name = random.choice(list(self.samples))
        data, how = mutate(random, self.samples[name], self.donors)
        what = f"{name} {how}"
        if random.random() < 0.05:
            path = folder / "video.jpg"
            path.write_bytes(data)
            read = partial(read_image, path)
            return Case(what, (Reader("read_image", read, DOCUMENTED, (path.name,)),))
        return self._case(folder, random.choice((name, name, "other.mp4")), data, what)

    def _case(self, folder: Path, name: str, data: bytes, what: str) -> Case:
        path = folder / name
        path.write_bytes(data)
        named = (name,)

        def decode() -> None:
            for _ in FrameStream(path):
                pass

        return Case(
            what,
            (
                Reader("FrameStream", decode, (ValueError,), named),
                Reader("FrameCache", partial(cached, path), (ValueError,)),
                Reader("VideoFileSource", partial(read_clips, path)),
                Reader("app upload", partial(read_uploaded_video, str(path)), (ValueError,), named),
            ),
        )


def cached(path: Path) -> None:
    """Reads a video as the adaptation does, at a small size."""
    FrameCache(path, short_side=32, max_frames=16)


def read_clips(path: Path) -> None:
    """Reads the first and the last pair of a video as training does."""
    source = VideoFileSource([path])
    for index in {0, len(source) - 1}:
        clip = source.clip(index)
        encoded = source.read(index, [clip.num_frames - 2, clip.num_frames - 1])
        for data in encoded:
            Image.open(io.BytesIO(data)).load()


class Masks(Family):
    """Masks of benchmarks and of class segmentation, with the lists and tables beside them."""

    name = "masks"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.samples = samples.masks()
        self.frame = samples.images()["photo.png"]
        self.donors = [*self.samples.values(), *samples.images().values()]

    def valid(self, folder: Path) -> Iterator[Case]:
        """Every mask and every table as it is."""
        for name, data in self.samples.items():
            is_color = name == "colors.ppm"
            case = self._mask(folder, name, data, name)
            has_classes = name in ("palette.png",)
            kept = [
                reader
                for reader in case.readers
                if not (is_color and reader.name == "read_object_mask")
                and (has_classes or reader.name != "scan_masks")
            ]
            yield Case(name, tuple(kept))
        yield self._definition(folder / "fbms", definition_text().encode(), "definition")
        yield self._labels(folder / "json", "id2label.json", LABELS_JSON.encode(), "labels")
        yield self._labels(folder / "text", "classes.txt", b"a\nb\nc\n", "labels")
        yield self._voc(folder / "voc", b"photo\n", "list")

    def case(self, random: Random, folder: Path) -> Case:
        """A damaged mask, or one time in four a damaged table or list."""
        kind = random.random()
        if kind < 0.1:
            data, how = mutate(random, definition_text().encode(), self.donors[:2])
            return self._definition(folder, data, how)
        if kind < 0.17:
            data, how = mutate_json(random, LABELS_JSON)
            return self._labels(folder, "id2label.json", data, how)
        if kind < 0.2:
            data, how = mutate(random, b"cat\ndog\nbird\n", self.donors[:2])
            return self._labels(folder, "classes.txt", data, how)
        if kind < 0.25:
            data, how = mutate(random, b"photo\nphoto masks/photo.png\n", self.donors[:2])
            return self._voc(folder, data, how)
        name = random.choice(list(self.samples))
        data, how = mutate(random, self.samples[name], self.donors)
        if name.endswith(".png") and random.random() < 0.6:
            data, how = repair_png(data), f"{how}+repair_png"
        return self._mask(folder, name, data, f"{name} {how}")

    def _mask(self, folder: Path, name: str, data: bytes, what: str) -> Case:
        path, frame = folder / name, folder / "frame.png"
        path.write_bytes(data)
        frame.write_bytes(self.frame)
        coded = AnnotatedFrame("x", frame, (path, path), frozenset({1, 255, 0x643200}))
        files = LabelledFiles([LabelledFile("x", frame, path)], "samples")

        def scan() -> None:
            scanned = scan_masks(files)
            check_masks(scanned, "samples", infer_num_labels(scanned, "samples"))

        named = (name,)
        return Case(
            what,
            (
                Reader("read_labels", partial(read_labels, path), (ValueError,), named),
                Reader("read_object_mask", partial(read_object_mask, path), (ValueError,), named),
                Reader("read_reference", partial(read_reference, coded), (ValueError,), named),
                Reader("scan_masks", scan, (ValueError,), (name, "samples")),
            ),
        )

    def _definition(self, folder: Path, data: bytes, what: str) -> Case:
        sequence = folder / "Testset" / "cars1"
        masks = sequence / "GroundTruth"
        masks.mkdir(parents=True)
        (sequence / "cars1_01.png").write_bytes(self.frame)
        (masks / "cars1_01_gt.ppm").write_bytes(self.samples["colors.ppm"])
        (masks / "cars1Def.dat").write_bytes(data)

        def read() -> None:
            for sequence in open_fbms59_test(folder).sequences:
                for frame in sequence.annotated:
                    read_reference(frame)

        named = ("cars1Def.dat", "cars1_01", "GroundTruth")
        return Case(f"cars1Def.dat {what}", (Reader("open_fbms59", read, (ValueError,), named),))

    def _labels(self, folder: Path, name: str, data: bytes, what: str) -> Case:
        for kind in ("images", "masks"):
            (folder / kind).mkdir(parents=True)
        (folder / "images/photo.png").write_bytes(self.frame)
        (folder / "masks/photo.png").write_bytes(self.samples["palette.png"])
        (folder / name).write_bytes(data)
        read = partial(open_semantic_folder, folder)
        return Case(f"{name} {what}", (Reader("label names", read, (ValueError,), (name,)),))

    def _voc(self, folder: Path, data: bytes, what: str) -> Case:
        for kind in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
            (folder / kind).mkdir(parents=True)
        (folder / "JPEGImages/photo.png").write_bytes(self.frame)
        (folder / "SegmentationClass/photo.png").write_bytes(self.samples["palette.png"])
        (folder / "ImageSets/Segmentation/train.txt").write_bytes(data)
        named = ("train.txt", "`train` list", "split `train`")
        read = partial(open_semantic_folder, folder)
        return Case(f"train.txt {what}", (Reader("VOC list", read, (ValueError,), named),))


LABELS_JSON = '{"0": "background", "1": "cat", "2": "dog"}'


def definition_text() -> str:
    """An FBMS ground truth definition of one annotated frame."""
    lines = ["Ground truth definition file;", "Total number of regions:", "3", "0", "6566400"]
    lines += ["13132800", "Total number of frames:", "1", "Total number of labeled frames:", "1"]
    lines += ["Frame number:", "0", "File name:", "cars1_01_gt.ppm"]
    lines += ["Input file name:", "cars1_01.png"]
    return "\n".join(lines) + "\n"
