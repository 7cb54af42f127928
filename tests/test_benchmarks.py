"""Readers on generated data sets laid out exactly like the originals."""

import numpy as np
import pytest
from PIL import Image

from amd_hf.data.annotations import (
    AnnotatedFrame,
    read_frame,
    read_labels,
    read_object_mask,
    read_reference,
)
from amd_hf.data.benchmarks import BENCHMARK_NAMES, open_benchmark
from amd_hf.data.davis import VALIDATION_FRAMES
from amd_hf.data.segtrack import SEQUENCE_FRAMES
from amd_hf.data.sources import natural_key

HEIGHT, WIDTH = 12, 16
LEFT = np.zeros((HEIGHT, WIDTH), bool)
LEFT[2:8, 1:6] = True
RIGHT = np.zeros((HEIGHT, WIDTH), bool)
RIGHT[4:10, 9:14] = True


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def save_frame(path):
    save(path, np.full((HEIGHT, WIDTH, 3), 90, np.uint8))


def gray(mask):
    return np.where(mask, 255, 0).astype(np.uint8)


def save_palette(path, labels):
    image = Image.fromarray(labels.astype(np.uint8), mode="L").convert("P")
    image.putdata(labels.astype(np.uint8).flatten())
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


@pytest.fixture
def davis(tmp_path):
    for name in ("blackswan", "dog"):
        for index in range(3):
            save_frame(tmp_path / "JPEGImages/480p" / name / f"{index:05d}.jpg")
            save(tmp_path / "Annotations/480p" / name / f"{index:05d}.png", gray(LEFT))
    return tmp_path


class TestDavis:
    def test_counts_and_masks(self, davis, caplog):
        benchmark = open_benchmark("davis2016", davis)
        assert (benchmark.num_expected, benchmark.num_expected_sequences) == (1376, 20)
        assert benchmark.num_found == 6
        assert not benchmark.is_complete
        assert "blackswan (3 of 50 masks)" in benchmark.missing
        assert "6 of 1376 annotated frames found" in caplog.text
        np.testing.assert_array_equal(read_reference(benchmark.sequences[0].frames[0]), LEFT)

    def test_facts(self):
        assert len(VALIDATION_FRAMES) == 20
        assert sum(VALIDATION_FRAMES.values()) == 1376

    def test_strict_refuses_a_subset(self, davis):
        with pytest.raises(ValueError, match=r"incomplete .* 6 of 1376 .*leave out `strict`"):
            open_benchmark("davis2016", davis, strict=True)

    def test_frame_without_mask_is_counted(self, davis):
        (davis / "Annotations/480p/dog/00001.png").unlink()
        benchmark = open_benchmark("davis2016", davis)
        assert (benchmark.num_found, benchmark.num_without_mask) == (5, 1)
        with pytest.raises(ValueError, match="has no mask; skip it"):
            read_reference(benchmark.sequences[1].frames[1])

    def test_tiff_frames_and_masks(self, davis):
        for path in [*davis.rglob("*.jpg"), *davis.rglob("*.png")]:
            with Image.open(path) as image:
                image.save(path.with_suffix(".tif"))
            path.unlink()
        (davis / "Annotations/480p/dog/00001.tif").unlink()
        benchmark = open_benchmark("davis2016", davis)
        assert (benchmark.num_found, benchmark.num_without_mask) == (5, 1)
        frame = benchmark.sequences[1].annotated[0]
        assert frame.image.name == "00000.tif"
        np.testing.assert_allclose(read_frame(frame.image), 90, atol=1)
        np.testing.assert_array_equal(read_reference(frame), LEFT)

    def test_mask_without_frame_is_an_error(self, davis):
        (davis / "JPEGImages/480p/dog/00001.jpg").unlink()
        with pytest.raises(ValueError, match=r"1 masks without a frame of the same name \(00001\)"):
            open_benchmark("davis2016", davis)

    def test_palette_masks_of_several_objects_are_merged(self, davis):
        labels = LEFT.astype(int) + 2 * RIGHT
        save_palette(davis / "Annotations/480p/dog/00000.png", labels)
        benchmark = open_benchmark("davis2016", davis, sequences=["dog"])
        np.testing.assert_array_equal(
            read_reference(benchmark.sequences[0].frames[0]), LEFT | RIGHT
        )

    def test_sequences(self, davis):
        benchmark = open_benchmark("davis2016", davis, sequences=["dog"])
        assert [sequence.name for sequence in benchmark.sequences] == ["dog"]
        with pytest.raises(ValueError, match="no sequence 'dogg' here; did you mean 'dog'"):
            open_benchmark("davis2016", davis, sequences=["dogg"])

    def test_real_set_is_complete(self, shared_dir):
        benchmark = open_benchmark("davis2016", shared_dir / "data/eval/davis2016", strict=True)
        assert benchmark.num_found == 1376
        assert read_reference(benchmark.sequences[0].frames[0]).shape == (480, 854)


class TestSegTrack:
    def test_one_folder_per_object(self, tmp_path):
        for index in range(2):
            save_frame(tmp_path / f"JPEGImages/bmx/bmx_{index}.png")
            save(tmp_path / f"GroundTruth/bmx/1/bmx_{index}.png", gray(LEFT))
            save(tmp_path / f"GroundTruth/bmx/2/bmx_{index}.png", gray(RIGHT))
        save_frame(tmp_path / "JPEGImages/girl/0.bmp")
        save(tmp_path / "GroundTruth/girl/0.png", gray(RIGHT))
        benchmark = open_benchmark("segtrackv2", tmp_path)
        bmx, girl = benchmark.sequences
        np.testing.assert_array_equal(read_reference(bmx.frames[1]), LEFT | RIGHT)
        np.testing.assert_array_equal(read_reference(girl.frames[0]), RIGHT)
        assert sum(SEQUENCE_FRAMES.values()) == benchmark.num_expected == 1066

    def test_real_set(self, shared_dir):
        benchmark = open_benchmark("segtrackv2", shared_dir / "data/eval/segtrackv2")
        assert (benchmark.num_found, benchmark.num_without_mask) == (889, 2)
        assert len(benchmark.sequences) == 10
        assert any(text.startswith("penguin") for text in benchmark.missing)


def write_fbms_sequence(folder, background, colors, suffix, encode):
    """A sequence with 4 frames of which the first and last are annotated, as distributed."""
    name = folder.name
    for index in range(1, 5):
        save_frame(folder / f"{name}_{index:02d}.jpg")
    lines = ["Ground truth definition file; do not change!", "", "Total number of regions:"]
    lines += [str(1 + len(colors)), "", str(background)]
    for color in colors:
        lines += ["", str(color)]
    matrix = "Confusion penality matrix"  # codespell:ignore penality
    lines += ["", matrix, "0 1 1", "1 0 1", "1 1 0", ""]
    lines += ["Total number of frames in this shot:", "4"]
    lines += ["Total number of labeled frames for this shot:", "2"]
    codes = np.full((HEIGHT, WIDTH), background)
    codes[LEFT], codes[RIGHT] = colors
    codes[0, 0] = colors[0] + 1  # a color that the file does not list: background
    for number in (0, 3):
        mask = f"{name}_{number + 1:02d}_gt{suffix}"
        save(folder / "GroundTruth" / mask, encode(codes))
        lines += ["Frame number:", str(number), "File name:", mask]
        lines += ["Input file name:", f"{name}_{number + 1:02d}.ppm"]
    (folder / "GroundTruth" / f"{name}Def.dat").write_text("\n".join(lines) + "\n")


def rgb(codes):
    return np.stack([codes >> 16, (codes >> 8) & 255, codes & 255], axis=-1).astype(np.uint8)


@pytest.fixture
def fbms(tmp_path):
    # Color masks have a white background, gray ones a black background.
    write_fbms_sequence(tmp_path / "Trainingset/cars1", 16777215, [65280, 16711680], ".ppm", rgb)
    write_fbms_sequence(
        tmp_path / "Testset/marple2", 0, [120, 200], ".pgm", lambda codes: codes.astype(np.uint8)
    )
    return tmp_path


class TestFbms:
    @pytest.mark.parametrize("index", [0, 1])
    def test_regions_are_merged_and_only_annotated_frames_scored(self, fbms, index):
        benchmark = open_benchmark("fbms59", fbms)
        assert (benchmark.num_expected, benchmark.num_expected_sequences) == (720, 59)
        assert (benchmark.num_found, benchmark.num_without_mask) == (4, 4)
        sequence = benchmark.sequences[index]
        assert [frame.name[-2:] for frame in sequence.annotated] == ["01", "04"]
        np.testing.assert_array_equal(read_reference(sequence.annotated[1]), LEFT | RIGHT)

    def test_two_sizes(self, fbms):
        benchmark = open_benchmark("fbms59-test", fbms)
        assert (benchmark.num_expected, benchmark.num_expected_sequences) == (367, 30)
        assert [sequence.name for sequence in benchmark.sequences] == ["marple2"]

    def test_png_masks_without_definition_file(self, tmp_path):
        folder = tmp_path / "Testset/cats01"
        for index in range(3):
            save_frame(folder / f"cats01_{index}.jpg")
        save(folder / "GroundTruth/cats01_1_gt.png", gray(LEFT))
        benchmark = open_benchmark("fbms59-test", tmp_path)
        assert [frame.name for frame in benchmark.sequences[0].annotated] == ["cats01_1"]

    def test_broken_definition_file(self, fbms):
        path = fbms / "Testset/marple2/GroundTruth/marple2Def.dat"
        path.write_text("hello")
        with pytest.raises(ValueError, match="not an FBMS ground truth definition file"):
            open_benchmark("fbms59", fbms)

    def test_missing_mask_file(self, fbms):
        (fbms / "Testset/marple2/GroundTruth/marple2_01_gt.pgm").unlink()
        with pytest.raises(ValueError, match=r"masks that are missing: marple2_01_gt\.pgm"):
            open_benchmark("fbms59", fbms)


@pytest.mark.parametrize(
    ("name", "images", "masks", "suffix", "num_images"),
    [
        ("duts-te", "DUTS-TE/DUTS-TE-Image", "DUTS-TE/DUTS-TE-Mask", ".jpg", 5019),
        ("ecssd", "images", "ground_truth_mask", ".jpg", 1000),
        ("pascal-s", "datasets/imgs/pascal", "datasets/masks/pascal", ".jpg", 850),
        ("dut-omron", "DUT-OMRON-image", "pixelwiseGT-new-PNG", ".jpg", 5168),
        ("hku-is", "imgs", "gt", ".png", 4447),
        ("duts-te", "images", "masks", ".jpg", 5019),
    ],
)
def test_image_sets(tmp_path, name, images, masks, suffix, num_images):
    for index in (2, 10):
        save_frame(tmp_path / images / f"{index}{suffix}")
    soft = np.where(LEFT, 200, 90).astype(np.uint8)  # anti-aliased borders are cut in the middle
    save(tmp_path / masks / "2.png", soft)
    benchmark = open_benchmark(name, tmp_path)
    assert benchmark.num_expected == num_images
    assert (benchmark.num_found, benchmark.num_without_mask) == (1, 1)
    assert [sequence.name for sequence in benchmark.sequences] == ["2", "10"]
    np.testing.assert_array_equal(read_reference(benchmark.sequences[0].frames[0]), LEFT)


class TestVoc:
    def test_split_and_void(self, tmp_path):
        root = tmp_path / "VOCdevkit/VOC2012"
        labels = np.zeros((HEIGHT, WIDTH), int)
        labels[LEFT], labels[RIGHT] = 15, 255
        save_frame(root / "JPEGImages/2007_000001.jpg")
        save_palette(root / "SegmentationClass/2007_000001.png", labels)
        names = root / "ImageSets/Segmentation/val.txt"
        names.parent.mkdir(parents=True)
        names.write_text("2007_000001\n2007_000002\n")
        benchmark = open_benchmark("voc2012", tmp_path)
        assert benchmark.kind == "semantic"
        assert (benchmark.num_found, benchmark.num_expected) == (1, 1449)
        assert benchmark.missing == ("1 listed images (2007_000002)",)
        frame = benchmark.sequences[0].frames[0]
        assert set(np.unique(read_labels(frame.masks[0]))) == {0, 15, 255}


class TestBadInput:
    def test_unknown_name_suggests_the_nearest(self, tmp_path):
        with pytest.raises(
            ValueError, match="Unknown benchmark 'davis16'; did you mean 'davis2016'"
        ):
            open_benchmark("davis16", tmp_path)
        with pytest.raises(ValueError, match=r"choose from davis2016, segtrackv2"):
            open_benchmark("zzz", tmp_path)

    def test_absent_folder(self, tmp_path):
        with pytest.raises(ValueError, match="nowhere of ecssd does not exist"):
            open_benchmark("ecssd", tmp_path / "nowhere")

    @pytest.mark.parametrize("name", BENCHMARK_NAMES)
    def test_wrong_folder(self, tmp_path, name):
        with pytest.raises(ValueError, match=r"is not an? .* folder: expected"):
            open_benchmark(name, tmp_path)

    def test_empty_set(self, tmp_path):
        (tmp_path / "images").mkdir()
        (tmp_path / "masks").mkdir()
        with pytest.raises(ValueError, match="holds no annotated frame of ECSSD to score"):
            open_benchmark("ecssd", tmp_path)

    def test_unreadable_files(self, tmp_path):
        path = tmp_path / "broken.png"
        path.write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
        for read in (read_frame, read_labels, read_object_mask):
            with pytest.raises(ValueError, match=r"Cannot read the .*broken\.png"):
                read(path)
        with pytest.raises(ValueError, match=r"Cannot read the frame .*absent\.jpg"):
            read_frame(tmp_path / "absent.jpg")

    def test_truncated_frame(self, tmp_path):
        path = tmp_path / "cut.jpg"
        noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        save(path, noise)
        path.write_bytes(path.read_bytes()[:400])
        with pytest.raises(ValueError, match="Cannot read the frame"):
            read_frame(path)

    def test_class_numbers_in_place_of_a_mask(self, tmp_path):
        path = tmp_path / "classes.png"
        save(path, (LEFT * 15).astype(np.uint8))
        with pytest.raises(ValueError, match="gray levels up to 15; expected 0/255, 0/1"):
            read_object_mask(path)

    def test_masks_of_two_sizes(self, tmp_path):
        save(tmp_path / "a.png", gray(LEFT))
        save(tmp_path / "b.png", gray(LEFT[:5]))
        frame = AnnotatedFrame("a", tmp_path / "a.jpg", (tmp_path / "a.png", tmp_path / "b.png"))
        with pytest.raises(ValueError, match="masks of one frame must have one size"):
            read_reference(frame)

    def test_two_frames_of_one_name(self, tmp_path):
        for suffix in (".jpg", ".png"):
            save_frame(tmp_path / "images" / f"1{suffix}")
        save(tmp_path / "masks/1.png", gray(LEFT))
        with pytest.raises(ValueError, match=r"holds both 1\.jpg and 1\.png"):
            open_benchmark("ecssd", tmp_path)


def test_masks_of_zeros_and_ones_and_one_bit(tmp_path):
    save(tmp_path / "ones.png", LEFT.astype(np.uint8))
    save(tmp_path / "bits.png", LEFT)
    for name in ("ones.png", "bits.png"):
        np.testing.assert_array_equal(read_object_mask(tmp_path / name), LEFT)


def test_frames_and_class_numbers_of_16_bits(tmp_path):
    numbers = np.array([[0, 200, 300, 65535]], np.uint16)
    save(tmp_path / "little.tif", numbers)
    big = Image.frombytes("I;16B", (4, 1), numbers.astype(">u2").tobytes())
    big.save(tmp_path / "big.tif")
    save(tmp_path / "fractions.tif", numbers.astype(np.float32) / 2)
    for name in ("little.tif", "big.tif"):
        np.testing.assert_array_equal(read_labels(tmp_path / name), numbers)
        frame = np.asarray(read_frame(tmp_path / name))
        np.testing.assert_array_equal(frame[..., 1], [[0, 0, 1, 255]])
    with pytest.raises(ValueError, match=r"fractions\.tif .*floating-point numbers"):
        read_labels(tmp_path / "fractions.tif")


def test_natural_order():
    names = ["cars1_10", "cars1_2", "a", "7"]
    assert sorted(names, key=natural_key) == ["7", "a", "cars1_2", "cars1_10"]
