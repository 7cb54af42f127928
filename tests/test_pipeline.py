"""The pipeline `zero-shot-object-segmentation`: images and videos in, object masks out."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset
from transformers import pipeline

from amd_hf import AMDConfig, AMDForSemanticSegmentation, AMDImageProcessor, AMDModel
from amd_hf.pipeline_amd import TASK, ZeroShotObjectSegmentationPipeline, describe_mask
from amd_hf.video_amd import FrameStream, VideoWriter

FAST = {"crop_size": 48, "short_side": 52, "batch_size": 1}


@pytest.fixture
def pipe(tiny_model: AMDModel) -> Any:
    processor = AMDImageProcessor.from_model_config(tiny_model.config, size={"shortest_edge": 64})
    with torch.no_grad():  # random weights see one grey mass; spread the segments over the image
        logits = tiny_model(**processor(_image(0), return_tensors="pt")).segment_logits
        scale = 3 / logits.std(dim=(0, 2, 3))
        tiny_model.segment_classifier.weight *= scale.view(-1, 1, 1, 1)
        tiny_model.segment_classifier.bias.sub_(logits.mean(dim=(0, 2, 3))).mul_(scale)
    return pipeline(TASK, model=tiny_model, image_processor=processor, device="cpu")


@pytest.fixture
def image() -> Image.Image:
    return _image(0)


def _image(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    """A patchy image, so that segments differ from place to place."""
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def _same(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> bool:
    return all(
        a["score"] == pytest.approx(b["score"], abs=1e-6)
        and a["box"] == b["box"]
        and np.array_equal(a["mask"], b["mask"])
        for a, b in zip(first, second, strict=True)
    )


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    with VideoWriter(path) as writer:
        for seed in range(5):
            writer.write(np.asarray(_image(seed)))
    return path


def test_pipeline_of_the_package_is_that_of_transformers() -> None:
    import transformers

    import amd_hf

    assert amd_hf.pipeline is transformers.pipeline


def test_one_image_gives_one_object(pipe: Any, image: Image.Image) -> None:
    entries = pipe(image, threshold=0.2)
    assert len(entries) == 1
    assert set(entries[0]) == {"score", "label", "mask", "box"}
    assert entries[0]["label"] == "object"
    assert entries[0]["mask"].mode == "L"
    assert entries[0]["mask"].size == image.size
    assert set(np.unique(entries[0]["mask"])) <= {0, 255}
    json.dumps({name: entries[0][name] for name in ("score", "label", "box")})


def test_result_is_that_of_processor_and_model(pipe: Any, image: Image.Image) -> None:
    with torch.no_grad():
        outputs = pipe.model(**pipe.image_processor(image, return_tensors="pt"))
    expected = pipe.image_processor.post_process_object_segmentation(
        outputs, [(30, 40)], threshold=0.2
    )[0].numpy()
    entry = pipe(image, threshold=0.2)[0]
    assert 0 < expected.mean() < 1
    assert np.array_equal(np.asarray(entry["mask"]) > 0, expected)


def test_segments_sum_to_one_and_name_the_object(pipe: Any, image: Image.Image) -> None:
    entries = pipe(image, return_segments=True)
    assert [entry["label"] for entry in entries] == [f"segment_{k}" for k in range(5)]
    assert [entry["is_object"] for entry in entries] == [True] + [False] * 4
    soft = np.stack([entry["soft_mask"] for entry in entries])
    assert soft.dtype == np.float32
    np.testing.assert_allclose(soft.sum(axis=0), np.ones((30, 40)), atol=1e-5)
    for entry in entries:
        assert np.array_equal(np.asarray(entry["mask"]) > 0, entry["soft_mask"] > 0.5)
    assert _same(pipe(image), entries[:1])


def test_object_segment_comes_from_the_model_or_the_call(pipe: Any, image: Image.Image) -> None:
    entries = pipe(image, return_segments=True, threshold=0.2)
    pipe.model.config.object_segment = 2
    assert _same(pipe(image, threshold=0.2), entries[2:3])
    assert _same(pipe(image, threshold=0.2, object_segment=4), entries[4:])
    assert pipe(image, return_segments=True)[2]["is_object"]


def test_score_and_box() -> None:
    soft_mask = np.full((4, 6), 0.25, dtype=np.float32)
    soft_mask[1:3, 2:5] = [[0.6, 0.8, 1.0], [0.6, 0.8, 1.0]]
    entry = describe_mask(soft_mask, 0.5)
    assert entry["score"] == pytest.approx(0.8)
    assert entry["box"] == [2, 1, 5, 3]
    assert np.asarray(entry["mask"].crop(entry["box"])).min() == 255
    empty = describe_mask(soft_mask, 1.0 - 1e-9)
    assert (empty["score"], empty["box"]) == (0.0, [0, 0, 0, 0])
    assert not np.asarray(empty["mask"]).any()


def test_every_kind_of_image(pipe: Any, image: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    image.save(path)
    expected = pipe(image)
    array = np.array(image)
    for source in (path, str(path), array, torch.from_numpy(array).permute(2, 0, 1)):
        assert _same(pipe(source), expected)
    assert _same(pipe(image.convert("L")), pipe(image.convert("L").convert("RGB")))


def test_portrait_and_rotated_photos_have_upright_masks(pipe: Any, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "phone.png"
    _image(0, width=60, height=30).save(path, exif=exif)
    assert pipe(path)[0]["mask"].size == (30, 60)
    assert pipe(_image(0, width=30, height=60))[0]["mask"].size == (30, 60)


def test_lists_are_lists_and_mixed_sizes_form_batches(pipe: Any) -> None:
    images = [_image(0), _image(1, 20, 50), _image(2), _image(3, 20, 50), _image(4)]
    one_by_one = [pipe(image, threshold=0.2) for image in images]
    for batch_size in (1, 2, 5):
        results = pipe(images, threshold=0.2, batch_size=batch_size)
        assert isinstance(results, list)
        assert len(results) == 5
        for result, expected, image in zip(results, one_by_one, images, strict=True):
            assert result[0]["mask"].size == image.size
            assert _same(result, expected)
    assert pipe([]) == []
    stacked = np.stack([np.asarray(images[0]), np.asarray(images[2])])
    assert _same(pipe(stacked, threshold=0.2)[1], one_by_one[2])


def test_generators_and_datasets_are_lazy(pipe: Any) -> None:
    taken: list[int] = []

    def source() -> Iterator[Image.Image]:
        for seed in range(6):
            taken.append(seed)
            yield _image(seed)

    results = pipe(source())
    assert next(results)[0]["label"] == "object"
    assert len(taken) <= 2
    assert len(list(results)) == 5

    class Images(Dataset):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> Image.Image:
            return _image(index)

    assert [len(entries) for entries in pipe(Images())] == [1, 1, 1]


def test_video_is_decoded_on_demand(
    pipe: Any, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = list(FrameStream(video))
    decoded: list[int] = []
    original = FrameStream._decode

    def counting(self: FrameStream, file: str) -> Iterator[np.ndarray]:
        for number, frame in enumerate(original(self, file)):
            decoded.append(number)
            yield frame

    monkeypatch.setattr(FrameStream, "_decode", counting)
    results = pipe(video, threshold=0.2)
    assert not decoded
    first = next(results)
    assert len(decoded) <= 2, "memory must not grow with the length"
    rest = list(results)
    assert len(rest) == 4
    for entries, frame in zip([first, *rest], frames, strict=True):
        assert _same(entries, pipe(frame, threshold=0.2))


def test_folder_of_mixed_sizes_keeps_each_size(pipe: Any, tmp_path: Path) -> None:
    sizes = [(40, 30), (20, 50), (40, 30)]
    for index, (width, height) in enumerate(sizes):
        _image(index, width, height).save(tmp_path / f"{index}.png")
    results = pipe(str(tmp_path))
    assert [entries[0]["mask"].size for entries in results] == sizes


def test_list_of_videos_and_images(pipe: Any, video: Path, image: Image.Image) -> None:
    results = pipe([video, image])
    assert len(list(results[0])) == 5
    assert results[1][0]["label"] == "object"


def test_adaptation_changes_the_result_and_not_the_model(pipe: Any, video: Path) -> None:
    before = [entry["score"] for (entry,) in pipe(video, threshold=0)]
    settings = {"learning_rate": 0.05, **FAST}
    adapted = [
        entry["score"]
        for (entry,) in pipe(video, threshold=0, adapt_steps=2, adapt_settings=settings)
    ]
    assert len(adapted) == 5
    assert adapted != pytest.approx(before, abs=1e-4)
    assert [entry["score"] for (entry,) in pipe(video, threshold=0)] == before


def test_list_of_frames_is_one_video_when_adapting(pipe: Any, video: Path) -> None:
    frames = list(FrameStream(video))
    settings = {"learning_rate": 0.05, **FAST}
    from_list = pipe(frames, adapt_steps=2, adapt_settings=settings)
    from_file = pipe(video, adapt_steps=2, adapt_settings=settings)
    assert isinstance(from_list, list)
    assert all(_same(a, b) for a, b in zip(from_list, from_file, strict=True))


def test_adapted_pipeline_is_kept_for_several_calls(pipe: Any, video: Path) -> None:
    pipe.image_processor.object_segment = 1
    adapted = pipe.adapted_to(video, 1, batch_size=1)
    assert adapted.adaptation.num_steps == 1
    assert pipe.adaptation is None
    assert adapted.model is not pipe.model
    assert adapted.image_processor is pipe.image_processor
    assert len(list(adapted(video))) == 5


def test_defaults_of_calls_are_set_with_the_pipeline(
    tiny_model: AMDModel, image: Image.Image, video: Path
) -> None:
    pipe = pipeline(
        TASK,
        model=tiny_model,
        image_processor=AMDImageProcessor(size={"shortest_edge": 64}),
        device="cpu",
        threshold=0.1,
        return_segments=True,
        adapt_steps=1,
        adapt_settings=FAST,
    )
    results = list(pipe(video))
    assert len(results) == 5
    assert len(results[0]) == 5
    assert pipe(image, adapt_steps=0, return_segments=False)[0]["label"] == "object"
    adapted = pipe.adapted_to(video, 1, **FAST)
    assert len(adapted(image)) == 5


def test_training_mode_neither_matters_nor_changes(
    pipe: Any, image: Image.Image, tiny_model: AMDModel
) -> None:
    expected = pipe(image)
    tiny_model.train()
    tiny_model.segment_flow.eval()
    modes = [module.training for module in tiny_model.modules()]
    assert _same(pipe(image), expected)
    assert [module.training for module in tiny_model.modules()] == modes


def test_reduced_precision(tiny_model: AMDModel, image: Image.Image) -> None:
    pipe = pipeline(
        TASK,
        model=tiny_model.to(torch.bfloat16),
        image_processor=AMDImageProcessor(size={"shortest_edge": 64}),
        device="cpu",
    )
    entry = pipe(image, return_segments=True)[0]
    assert entry["soft_mask"].dtype == np.float32


def test_bad_calls_give_one_sentence(pipe: Any, image: Image.Image, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"There is no file .*nothing\.png"):
        pipe(tmp_path / "nothing.png")
    with pytest.raises(ValueError, match=r"There is no file .*nothing\.mp4"):
        pipe(tmp_path / "nothing.mp4")
    with pytest.raises(ValueError, match="holds no image"):
        pipe(tmp_path)
    with pytest.raises(ValueError, match=r"`threshold` must lie in \[0, 1\), got 2"):
        pipe(image, threshold=2)
    with pytest.raises(ValueError, match="`threshold`"):
        pipe((image for _ in range(2)), threshold=-1)
    with pytest.raises(ValueError, match=r"`object_segment` must lie in 0\.\.4, got 5"):
        pipe(image, object_segment=5)
    with pytest.raises(TypeError, match=r"Unknown arguments \['thresholds'\]"):
        pipe(image, thresholds=0.3)
    with pytest.raises(TypeError, match="got dict"):
        pipe({"image": 3})
    for single in (image, (image for _ in range(3))):
        with pytest.raises(ValueError, match="`adapt_steps` needs a video"):
            pipe(single, adapt_steps=2)
    with pytest.raises(ValueError, match="at least 2 frames"):
        pipe([image], adapt_steps=2)


def test_other_models_are_refused(tmp_path: Path) -> None:
    processor = AMDImageProcessor()
    semantic = AMDForSemanticSegmentation(AMDConfig.tiny())
    with pytest.raises(ValueError, match="needs an AMDModel, got AMDForSemanticSegmentation"):
        ZeroShotObjectSegmentationPipeline(semantic, image_processor=processor)
    semantic.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="was fine-tuned for semantic segmentation"):
        pipeline(TASK, model=str(tmp_path), device="cpu")
    with pytest.raises(ValueError, match="needs an image processor"):
        ZeroShotObjectSegmentationPipeline(AMDModel(AMDConfig.tiny()))


def test_default_is_the_bundled_checkpoint_without_network(image: Image.Image) -> None:
    task: Any = TASK
    entries = pipeline(task, device="cpu")(image, return_segments=True)
    assert sum(entry["is_object"] for entry in entries) == 1


LOAD = """
import json, sys
sys.modules["amd_hf"] = None  # an editable install would otherwise hide an absolute import
from transformers import pipeline
folder, image, video, again = sys.argv[1:]
for _ in range(2):
    pipe = pipeline({task!r}, model=folder, trust_remote_code=True, device="cpu")
    entry = pipe(image, threshold=0.2)[0]
    entry["mask"].save(again + ".png")
    settings = dict(crop_size=48, short_side=52, batch_size=1)
    frames = list(pipe(video, adapt_steps=1, adapt_settings=settings))
    print(json.dumps([type(pipe).__module__, entry["score"], entry["box"], len(frames)]))
    pipe.save_pretrained(again)
    folder = again
"""


def test_saved_folder_works_without_the_package(
    pipe: Any, image: Image.Image, video: Path, tmp_path: Path
) -> None:
    folder, again, path = tmp_path / "model", tmp_path / "again", tmp_path / "image.png"
    image.save(path)
    pipe.save_pretrained(folder)
    expected = pipe(image, threshold=0.2)[0]
    script = LOAD.format(task=TASK)
    result = subprocess.run(
        [sys.executable, "-c", script, folder, path, video, again],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(lines) == 2, "a folder saved by the loaded pipeline must work as well"
    for module, score, box, num_frames in lines:
        assert module.startswith("transformers_modules.")
        assert score == pytest.approx(expected["score"], abs=1e-5)
        assert box == expected["box"]
        assert num_frames == 5
    assert np.array_equal(Image.open(f"{again}.png"), expected["mask"])


def test_saved_folder_uses_the_package_where_it_is(
    pipe: Any, image: Image.Image, tmp_path: Path
) -> None:
    pipe.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    saved = config["custom_pipelines"][TASK]
    assert saved == {"impl": "pipeline_amd.ZeroShotObjectSegmentationPipeline", "pt": ["AutoModel"]}
    task: Any = TASK
    for flags in ({}, {"trust_remote_code": True}):
        loaded = pipeline(task, model=str(tmp_path), device="cpu", **flags)
        assert type(loaded) is ZeroShotObjectSegmentationPipeline
        assert type(loaded.model) is AMDModel
        assert _same(loaded(image), pipe(image))
