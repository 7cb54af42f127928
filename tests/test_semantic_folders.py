"""Images with a class per pixel: layouts, splits, codings, Hub tables, and every bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from amd_hf.data.semantic_folders import (
    LabelledFiles,
    available_splits,
    open_semantic_folder,
    read_label_file,
)
from amd_hf.data.semantic_hub import LabelledRows, open_semantic_hub
from amd_hf.data.semantic_images import (
    MaskCoding,
    check_masks,
    infer_num_labels,
    parse_label_names,
    scan_masks,
)
from amd_hf.training.finetuning_arguments import FinetuningArguments
from amd_hf.training.finetuning_data import open_semantic_data
from tests.semantic_trees import color_picture, write_pairs

Options = Callable[..., FinetuningArguments]


@pytest.fixture
def options(tmp_path: Path) -> Options:
    """Arguments for the folder `data` of the test."""

    def make(**changes: Any) -> FinetuningArguments:
        settings = {"dataset_name": str(tmp_path / "data"), "output_dir": str(tmp_path / "out")}
        return FinetuningArguments(**{**settings, **changes})

    return make


def write_voc(root: Path, lists: dict[str, list[str]], masks: str = "SegmentationClass") -> None:
    """Writes the VOC layout: palette masks of two classes and a void border."""
    (root / "ImageSets" / "Segmentation").mkdir(parents=True, exist_ok=True)
    for folder in ("JPEGImages", masks, "SegmentationClass"):
        (root / folder).mkdir(exist_ok=True)
    for split, names in lists.items():
        text = "".join(f"{name}\n" for name in names)
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text(text)
        for number, name in enumerate(names):
            stem = Path(name.split()[0]).stem
            picture, labels = color_picture(number)
            labels[0] = 255
            Image.fromarray(picture).save(root / "JPEGImages" / f"{stem}.jpg")
            mask = Image.fromarray(labels)
            mask = mask.convert("P")
            mask.putpalette([value for i in range(256) for value in (i, 255 - i, i // 2)])
            mask.putdata(labels.ravel().tolist())
            mask.save(root / masks / f"{stem}.png")


def test_a_pair_of_folders_with_splits(tmp_path: Path) -> None:
    write_pairs(tmp_path / "data", {"train": 3, "val": 2})
    assert available_splits(tmp_path / "data") == ["train", "val"]
    images = open_semantic_folder(tmp_path / "data", "train")
    assert [images.key(index) for index in range(len(images))] == ["p00", "p01", "p02"]
    picture, labels = color_picture(1)
    assert (np.asarray(images.load_image(0)) == picture).all()
    assert (images.load_mask(0) == labels).all()
    assert images.image_size(0) == labels.shape


@pytest.mark.parametrize("names", [("img", "labels"), ("train/image", "train/mask")])
def test_other_names_of_folders(tmp_path: Path, names: tuple[str, str]) -> None:
    root = tmp_path / "data"
    write_pairs(root, {"": 2})
    for old, new in zip(("images", "masks"), names, strict=True):
        (root / new).parent.mkdir(exist_ok=True)
        (root / old).rename(root / new)
    images = open_semantic_folder(
        root, "train", image_folder=names[0], mask_folder=names[1], mask_suffix=""
    )
    assert len(images) == 2


def test_splits_above_the_pairs_and_suffixes_of_masks(tmp_path: Path) -> None:
    root = tmp_path / "data"
    write_pairs(root / "training", {"": 2})
    for mask in (root / "training" / "masks").glob("*.png"):
        mask.rename(mask.with_name(f"{mask.stem}_L.png"))
    assert available_splits(root) == ["train"]
    images = open_semantic_folder(root, "train", mask_suffix="_L")
    assert images.key(0) == "p00"
    with pytest.raises(ValueError, match=r"2 of 2 images in .* have no mask of the same name"):
        open_semantic_folder(root, "train")


def test_camvid_of_the_shared_data(shared_dir: Path) -> None:
    root = shared_dir / "data" / "finetune" / "camvid"
    if not root.is_dir():
        pytest.skip("no CamVid in the shared data")
    assert available_splits(root) == ["train", "val", "test"]
    images = open_semantic_folder(root, "test", coding=MaskCoding(ignore_index=11))
    assert len(images) == 233
    some = images.subset(range(0, 233, 40), "CamVid test")
    scan = scan_masks(some)
    check_masks(scan, some.title, 11)
    assert 255 in scan.pixels
    assert some.image_size(0) == (270, 360)


def test_voc_with_the_augmented_list(tmp_path: Path) -> None:
    root = tmp_path / "VOCdevkit" / "VOC2012"
    write_voc(root, {"train": ["a", "b"], "val": ["c"]})
    assert available_splits(tmp_path) == ["train", "val"]
    write_voc(
        root,
        {"train_aug": ["/JPEGImages/a.jpg /SegmentationClassAug/a.png", "d", "e"]},
        "SegmentationClassAug",
    )
    assert available_splits(tmp_path) == ["train", "val", "train_aug"]
    images = open_semantic_folder(tmp_path, "train_aug")
    assert [images.key(index) for index in range(3)] == ["a", "d", "e"]
    assert images.labels is not None
    assert len(images.labels) == 21
    # VOC's own mask wins over that of SBD.
    assert [file.mask.parent.name for file in images.files] == [
        "SegmentationClass",
        "SegmentationClassAug",
        "SegmentationClassAug",
    ]
    scan = scan_masks(images)
    assert set(scan.pixels) == {0, 1, 2, 255}
    check_masks(scan, images.title, 21)


def test_voc_aug_list_beside_train_and_leaks_are_refused(tmp_path: Path) -> None:
    write_voc(tmp_path, {"train": ["a"], "val": ["c"]})
    write_voc(tmp_path, {"aug": ["d", "a"]}, "SegmentationClassAug")
    images = open_semantic_folder(tmp_path, "train_aug")
    assert [images.key(index) for index in range(2)] == ["a", "d"]
    (tmp_path / "ImageSets" / "Segmentation" / "aug.txt").write_text("d\nc\n")
    with pytest.raises(ValueError, match=r"holds 1 validation images \(c\)"):
        open_semantic_folder(tmp_path, "train_aug")
    (tmp_path / "ImageSets" / "Segmentation" / "train.txt").write_text("a\nmissing\n")
    with pytest.raises(ValueError, match=r"1 of 2 names in the `train` list .* have no image"):
        open_semantic_folder(tmp_path, "train")
    (tmp_path / "ImageSets" / "Segmentation" / "val.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"The split `val` .* is empty"):
        open_semantic_folder(tmp_path, "val")


def test_voc_trains_on_the_augmented_list_where_there_is_one(
    tmp_path: Path, options: Options
) -> None:
    write_voc(tmp_path / "data", {"train": ["a"], "val": ["c"]})
    assert open_semantic_data(options()).train.title == "VOC 2012 train"
    write_voc(tmp_path / "data", {"train_aug": ["a", "d"]}, "SegmentationClassAug")
    data = open_semantic_data(options())
    assert (data.train.title, data.validation.title) == ("VOC 2012 train_aug", "VOC 2012 val")
    assert open_semantic_data(options(train_split="train")).train.title == "VOC 2012 train"


@pytest.mark.parametrize(
    ("coding", "expected"),
    [
        (MaskCoding(), [0, 1, 2, 11, 255]),
        (MaskCoding(11), [0, 1, 2, 255, 256]),
        (MaskCoding(None), [0, 1, 2, 11, 256]),
        (MaskCoding(255, do_reduce_labels=True), [255, 0, 1, 10, 255]),
    ],
)
def test_codings(coding: MaskCoding, expected: list[int]) -> None:
    assert coding.decode(np.array([0, 1, 2, 11, 255])).tolist() == expected


def test_without_a_second_split_images_are_held_out(
    tmp_path: Path, options: Options, caplog: pytest.LogCaptureFixture
) -> None:
    write_pairs(tmp_path / "data", {"": 10})
    data = open_semantic_data(options(validation_fraction=0.3))
    assert (len(data.train), len(data.validation)) == (7, 3)
    keys = [{images.key(i) for i in range(len(images))} for images in (data.train, data.validation)]
    assert not keys[0] & keys[1]
    assert "3 of 10 training images are held out" in caplog.text
    # Whatever the seed of the run, or runs could not be compared.
    other = open_semantic_data(options(validation_fraction=0.3, seed=7)).validation
    assert {other.key(index) for index in range(3)} == keys[1]
    with pytest.raises(ValueError, match="has no split `val`"):
        open_semantic_data(options(validation_split="val"))


def test_classes_come_from_the_options_the_folder_or_the_masks(
    tmp_path: Path, options: Options, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "data"
    write_pairs(root, {"train": 3, "val": 1})
    assert open_semantic_data(options()).labels == ("class_0", "class_1", "class_2")
    assert "3 were told from the masks" in caplog.text
    (root / "classes.txt").write_text("ground\nred\nblue\n\n")
    assert open_semantic_data(options()).labels == ("ground", "red", "blue")
    data = open_semantic_data(options(class_names="a,b,c,d"))
    assert data.labels == ("a", "b", "c", "d")
    assert "no pixel of the classes d" in caplog.text


def test_label_files(tmp_path: Path) -> None:
    assert read_label_file(tmp_path) is None
    (tmp_path / "id2label.json").write_text(json.dumps({"1": "car", "0": "road"}))
    assert read_label_file(tmp_path) == ("road", "car")
    (tmp_path / "id2label.json").write_text(json.dumps({"1": "car", "2": "road"}))
    with pytest.raises(ValueError, match="must map the ids 0, 1, 2"):
        read_label_file(tmp_path)
    assert parse_label_names("sky, road") == ("sky", "road")
    for text in ("sky,,road", "sky,sky"):
        with pytest.raises(ValueError, match="must be different names"):
            parse_label_names(text)


def test_ids_outside_of_the_classes(tmp_path: Path, options: Options) -> None:
    write_pairs(tmp_path / "data", {"train": 3, "val": 2}, ignore=11)
    message = (
        r"3 masks of data train hold ids outside of the 3 classes 0\.\.2 \(ids 11; in p00, p01, "
        r"p02\); name the id of unlabelled pixels with --ignore_index"
    )
    with pytest.raises(ValueError, match=message):
        open_semantic_data(options(class_names="a,b,c"))
    with pytest.raises(ValueError, match="cannot be told from its masks, which hold the ids 0, 1"):
        open_semantic_data(options())
    data = open_semantic_data(options(ignore_index=11))
    assert len(data.labels) == 3
    assert (data.train.load_mask(0)[:2] == 255).all()


def test_rgb_masks_are_named_as_such(tmp_path: Path, options: Options) -> None:
    write_pairs(tmp_path / "data", {"train": 2, "val": 1})
    picture = Image.fromarray(color_picture(0)[0])
    picture.save(tmp_path / "data" / "masks" / "train" / "p00.png")
    with pytest.raises(ValueError, match="the masks are RGB pictures"):
        open_semantic_data(options(class_names="a,b,c"))


def test_sizes_and_names_that_do_not_match(tmp_path: Path, options: Options) -> None:
    root = tmp_path / "data"
    write_pairs(root, {"train": 3, "val": 2})
    small = Image.fromarray(np.zeros((40, 80), dtype=np.uint8))
    small.save(root / "masks" / "val" / "p01.png")
    message = r"1 masks of data val differ in size .* \(p01: image 48x80, mask 40x80\)"
    with pytest.raises(ValueError, match=message):
        open_semantic_data(options())
    (root / "masks" / "val" / "p01.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 2 images .* have no mask .* \(p01\)"):
        open_semantic_data(options())
    (root / "images" / "val" / "p01.png").unlink()
    small.save(root / "masks" / "val" / "p07.png")
    with pytest.raises(ValueError, match=r"1 of 2 masks .* have no image .* \(p07\)"):
        open_semantic_data(options())


def test_an_upright_size_is_compared(tmp_path: Path) -> None:
    write_pairs(tmp_path / "data", {"train": 1})
    picture, labels = color_picture(5)
    exif = Image.Exif()
    exif[274] = 6  # a camera held upright: stored lying, shown standing
    path = tmp_path / "data" / "images" / "train" / "p00.png"
    Image.fromarray(np.rot90(picture).copy()).save(path, exif=exif)
    images = open_semantic_folder(tmp_path / "data", "train")
    Image.fromarray(labels).save(tmp_path / "data" / "masks" / "train" / "p00.png")
    assert images.image_size(0) == labels.shape
    assert (np.asarray(images.load_image(0)) == picture).all()
    assert not scan_masks(images).mismatched


def test_empty_missing_and_unreadable(tmp_path: Path, options: Options) -> None:
    root = tmp_path / "data"
    with pytest.raises(ValueError, match="neither a folder nor a data set"):
        open_semantic_data(options(dataset_name=str(root / "nothing")))
    root.mkdir()
    with pytest.raises(ValueError, match="holds no images with masks: expected `images/`"):
        open_semantic_data(options())
    write_pairs(root, {"train": 2, "val": 0})
    with pytest.raises(ValueError, match=r"The split `val` of .* is empty"):
        open_semantic_data(options())
    with pytest.raises(ValueError, match="has no split `night`"):
        open_semantic_data(options(validation_split="night"))
    (root / "masks" / "train" / "p01.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"Cannot read the mask .*p01\.png"):
        open_semantic_data(options(validation_split="train"))
    with pytest.raises(ValueError, match="must be given together"):
        open_semantic_data(options(image_folder="images"))


def test_masks_without_any_class(tmp_path: Path, options: Options) -> None:
    write_pairs(tmp_path / "data", {"train": 1, "val": 1})
    blank = Image.fromarray(np.full((48, 80), 255, dtype=np.uint8))
    blank.save(tmp_path / "data" / "masks" / "val" / "p00.png")
    with pytest.raises(ValueError, match="No pixel of data val has a class"):
        open_semantic_data(options())


def test_one_image_cannot_be_divided(tmp_path: Path, options: Options) -> None:
    write_pairs(tmp_path / "data", {"": 1})
    with pytest.raises(ValueError, match=r"has 1 image\(s\) and there is no other split"):
        open_semantic_data(options())


def test_object_masks_are_no_class_ids(tmp_path: Path) -> None:
    write_pairs(tmp_path / "data", {"train": 1})
    mask = np.zeros((48, 80), dtype=np.uint8)
    mask[:20] = 200
    Image.fromarray(mask).save(tmp_path / "data" / "masks" / "train" / "p00.png")
    images: LabelledFiles = open_semantic_folder(tmp_path / "data", "train")
    with pytest.raises(ValueError, match="cannot be told from its masks"):
        infer_num_labels(scan_masks(images), images.title)


def table(path: Path, counts: dict[str, int], mask_column: str = "annotation") -> Path:
    """Writes a Hub data set in parquet, as `Dataset.push_to_hub` does."""
    from datasets import Dataset, Features
    from datasets import Image as ImageFeature

    number = 0
    (path / "data").mkdir(parents=True)
    for split, count in counts.items():
        pairs = [color_picture(number := number + 1) for _ in range(count)]
        columns = {
            "image": [Image.fromarray(picture) for picture, _ in pairs],
            mask_column: [Image.fromarray(labels) for _, labels in pairs],
        }
        features = Features({"image": ImageFeature(), mask_column: ImageFeature()})
        rows = Dataset.from_dict(columns, features=features)
        rows.to_parquet(path / "data" / f"{split}-00000-of-00001.parquet")
    return path


def test_rows_of_a_hub_data_set(tmp_path: Path) -> None:
    path = table(tmp_path / "hub", {"train": 3, "validation": 2})
    rows = open_semantic_hub(str(path), "val")
    assert isinstance(rows, LabelledRows)
    assert len(rows) == 2
    picture, labels = color_picture(4)
    assert (np.asarray(rows.load_image(0)) == picture).all()
    assert (rows.load_mask(0) == labels).all()
    assert rows.image_size(0) == labels.shape
    scan = scan_masks(rows)
    check_masks(scan, rows.title, 3)
    assert (rows.subset([1], "part").load_mask(0) == rows.load_mask(1)).all()
    assert open_semantic_hub(str(path), "night") is None


def test_columns_of_a_hub_data_set(tmp_path: Path) -> None:
    path = table(tmp_path / "hub", {"train": 1}, mask_column="teacher")
    with pytest.raises(ValueError, match=r"`mask_column` must be one of the columns image, teach"):
        open_semantic_hub(str(path), "train")
    rows = open_semantic_hub(str(path), "train", mask_column="teacher")
    assert rows is not None
    assert rows.load_mask(0).max() == 2
