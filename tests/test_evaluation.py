"""The runner: protocols, selected and oracle scores, adaptation, controls, bad input."""

# ruff: noqa: F811 (fixtures)

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from amd_hf import DEFAULT_CHECKPOINT, AMDImageProcessor, AMDModel
from amd_hf.data.annotations import read_reference
from amd_hf.data.benchmarks import open_benchmark
from amd_hf.data.synthetic_objects import generate_clip
from amd_hf.evaluation import EvaluationSettings, evaluate_benchmark
from amd_hf.evaluation.contact_sheet import results_sheet
from amd_hf.evaluation.controls import center_ellipse, random_model
from amd_hf.evaluation.predictors import ModelPredictor
from amd_hf.evaluation.progress import fingerprint
from amd_hf.metrics import region_similarity
from tests.evaluation_data import write_images

from .evaluation_cases import davis, ecssd, evaluate, processor  # noqa: F401 (fixtures)


class TestVideoBenchmark:
    def test_result_is_json_with_everything(self, evaluate, davis):
        result = evaluate("davis2016", davis, model_name="tiny")
        json.dumps(result, allow_nan=False)
        assert result["benchmark"] == "davis2016"
        assert result["model"] == "tiny"
        assert result["protocol"] == "per-image"
        assert (result["num_expected"], result["num_found"], result["num_scored"]) == (1376, 8, 8)
        assert result["is_subset"]
        assert {"J", "J_recall", "J_decay", "F", "pooled_iou"} <= set(result["selected"])
        assert {"torch", "transformers", "amd_hf"} <= set(result["versions"])
        assert [row["name"] for row in result["rows"]] == ["blackswan", "dog"]
        assert "controls" not in result
        assert "baselines" not in result

    def test_selected_oracle_and_best_of_k(self, evaluate, davis, tiny_config):
        result = evaluate("davis2016", davis)
        table = np.array([row["per_segment"]["J"] for row in result["rows"]])
        chosen = tiny_config.object_segment
        assert result["selected"]["J"] == pytest.approx(table[:, chosen].mean())
        assert result["oracle"]["J"] == pytest.approx(table.mean(axis=0).max())
        assert result["best_of_k"]["J"] == pytest.approx(table.max(axis=1).mean())
        assert result["selected"]["J"] <= result["oracle"]["J"] <= result["best_of_k"]["J"]
        other = evaluate("davis2016", davis, object_segment=(chosen + 1) % table.shape[1])
        assert other["selected"]["J"] == pytest.approx(table[:, (chosen + 1) % 5].mean())

    def test_scores_are_taken_at_the_size_of_the_mask(self, evaluate, davis):
        for path in (davis / "Annotations/480p").glob("*/*.png"):
            with Image.open(path) as mask:
                mask.resize((128, 96), Image.Resampling.NEAREST).save(path)
        result = evaluate("davis2016", davis)
        # A union is at least the area of the references: four squares, enlarged twice.
        assert min(result["rows"][0]["per_segment"]["union"]) >= 4 * 40 * 40

    def test_agrees_with_the_processor(self, tiny_model, processor, davis):
        benchmark = open_benchmark("davis2016", davis)
        predictor = ModelPredictor(tiny_model, processor, EvaluationSettings())
        sequence = benchmark.sequences[0]
        (prediction,) = predictor.predict(sequence, sequence.frames[:1])
        image = Image.open(sequence.frames[0].image)
        with torch.no_grad():
            outputs = tiny_model(**processor(image, return_tensors="pt"))
        (mask,) = processor.post_process_object_segmentation(outputs, target_sizes=[(48, 64)])
        found = prediction.soft_masks[predictor.selected] > 0.5
        np.testing.assert_array_equal(found, mask.numpy())
        np.testing.assert_allclose(prediction.soft_masks.sum(axis=0), 1, atol=1e-5)

    @pytest.mark.parametrize("options", [{"batch_size": 3}, {"autocast": "bfloat16"}])
    def test_batch_and_precision_keep_the_soft_masks(self, tiny_model, processor, davis, options):
        sequence = open_benchmark("davis2016", davis).sequences[0]

        def soft_masks(**options):
            predictor = ModelPredictor(tiny_model, processor, EvaluationSettings(**options))
            return [item.soft_masks for item in predictor.predict(sequence, sequence.frames)]

        tolerance = 1e-5 if "batch_size" in options else 2e-2
        np.testing.assert_allclose(soft_masks(**options), soft_masks(), atol=tolerance)

    def test_subset_options(self, evaluate, davis):
        result = evaluate("davis2016", davis, sequences=("dog",), stride=2, limit_frames=1)
        assert result["num_scored"] == 1
        assert [row["name"] for row in result["rows"]] == ["dog"]
        assert result["settings"]["stride"] == 2

    def test_stale_overrides_are_refused(self, evaluate, davis):
        with pytest.raises(TypeError, match="num_steps"):
            evaluate("davis2016", davis, num_steps=3)


class TestAdaptation:
    SETTINGS = {"crop_size": 32, "short_side": 48, "learning_rate": 1e-2}  # noqa: RUF012

    def test_each_sequence_gets_its_own_copy(self, evaluate, davis, tiny_model):
        before = fingerprint(tiny_model.state_dict().items())
        options = {"adapt_steps": 1, "adapt_settings": self.SETTINGS, "limit_frames": 1}
        plain = evaluate("davis2016", davis, limit_frames=1)
        adapted = evaluate("davis2016", davis, **options)
        assert fingerprint(tiny_model.state_dict().items()) == before
        assert adapted["protocol"] == "per-video, 1 steps"
        assert adapted["rows"] != plain["rows"]
        # What was adapted to the first video leaves no trace in the second.
        alone = evaluate("davis2016", davis, sequences=("dog",), **options)
        assert alone["rows"][0] == adapted["rows"][1]

    def test_long_videos_in_chunks(self, tiny_model, processor, davis, monkeypatch):
        settings = EvaluationSettings(adapt_steps=1, adapt_chunk=3, adapt_settings=self.SETTINGS)
        predictor = ModelPredictor(tiny_model, processor, settings)
        seen = []
        monkeypatch.setattr(
            predictor, "_adapted", lambda part: seen.append(sorted(part)) or tiny_model
        )
        sequence = open_benchmark("davis2016", davis).sequences[0]
        names = [item.frame.name for item in predictor.predict(sequence, sequence.frames)]
        assert names == ["00000", "00001", "00002", "00003"]
        assert seen == [["00000", "00001"], ["00002", "00003"]]


class TestImageBenchmark:
    def test_result(self, evaluate, ecssd):
        result = evaluate("ecssd", ecssd)
        json.dumps(result, allow_nan=False)
        expected = {"max_f_beta", "mean_f_beta", "adaptive_f_beta", "mae", "s_measure", "iou"}
        assert expected <= set(result["selected"])
        assert result["num_scored"] == 5
        table = np.array([row["per_segment"]["iou"] for row in result["rows"]])
        assert result["oracle"]["iou"] == pytest.approx(table.mean(axis=0).max())

    def test_stretching_changes_soft_scores_only(self, evaluate, ecssd):
        plain, stretched = evaluate("ecssd", ecssd), evaluate("ecssd", ecssd, stretch=True)
        assert plain["selected"]["iou"] == stretched["selected"]["iou"]
        assert plain["selected"]["mae"] != stretched["selected"]["mae"]


def test_baselines_under_one_command(evaluate, davis, tmp_path):
    result = evaluate("davis2016", davis, baselines=("rbd", "motion"))
    assert set(result["baselines"]) == {"rbd", "motion"}
    assert 0 <= result["baselines"]["rbd"]["selected"]["J"] <= 1
    with pytest.raises(ValueError, match="'motion' needs a video benchmark"):
        evaluate("ecssd", write_images(tmp_path / "images", 1), baselines=("motion",))


class TestControls:
    def test_center_ellipse(self):
        ellipse = center_ellipse(50, 100)
        assert ellipse.argmax() in (24 * 100 + 49, 24 * 100 + 50, 25 * 100 + 49, 25 * 100 + 50)
        assert (ellipse > 0.5).mean() == pytest.approx(np.pi * 0.3 * 0.3, abs=0.01)
        np.testing.assert_array_equal(ellipse, ellipse[::-1, ::-1])

    def test_random_model_is_reproducible_and_leaves_the_random_state(self, tiny_model):
        state = torch.get_rng_state()
        first, second = random_model(tiny_model, 3), random_model(tiny_model, 3)
        assert torch.equal(torch.get_rng_state(), state)
        weights = [fingerprint(model.state_dict().items()) for model in (first, second, tiny_model)]
        assert weights[0] == weights[1] != weights[2]

    def test_under_one_command(self, evaluate, davis):
        result = evaluate("davis2016", davis, controls=True)
        assert set(result["controls"]) == {"center_ellipse", "random_init"}
        ellipse = center_ellipse(48, 64) > 0.5
        references = [
            [read_reference(frame) for frame in sequence.frames]
            for sequence in open_benchmark("davis2016", davis).sequences
        ]
        expected = np.mean(
            [np.mean([region_similarity(ellipse, mask) for mask in masks]) for masks in references]
        )
        control = result["controls"]["center_ellipse"]
        assert control["selected"]["J"] == pytest.approx(expected)
        assert "best_of_k" not in control
        assert "best_of_k" in result["controls"]["random_init"]


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "text"),
        [
            ({"threshold": 1.0}, r"`threshold` must lie in \[0, 1\)"),
            ({"stride": 0}, "`stride` must be at least 1"),
            ({"adapt_steps": -1}, "`adapt_steps` must be at least 0"),
            ({"autocast": "int8"}, "`autocast` must be one of"),
            ({"refinements": ("crf",)}, "`refinements` must be from .* got 'crf'"),
            ({"limit_frames": 0}, "`limit_frames` must be at least 1 or None"),
            ({"num_bootstrap": -1}, "`num_bootstrap` must be at least 0"),
            ({"object_segment": 9}, r"`object_segment` must lie in 0\.\.4"),
        ],
    )
    def test_settings(self, evaluate, davis, options, text):
        with pytest.raises(ValueError, match=text):
            evaluate("davis2016", davis, **options)

    def test_data_dir_is_needed(self, evaluate):
        with pytest.raises(ValueError, match="`data_dir` must be the folder of davis2016"):
            evaluate("davis2016", None)

    def test_unreadable_frame_names_the_file(self, evaluate, davis):
        (davis / "JPEGImages/480p/dog/00002.jpg").write_bytes(b"rubbish")
        with pytest.raises(ValueError, match=r"Cannot read the frame .*dog/00002\.jpg"):
            evaluate("davis2016", davis)

    def test_segments_are_needed_for_class_segmentation(self, tmp_path, evaluate):
        root = tmp_path / "voc"
        for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
            (root / folder).mkdir(parents=True)
        Image.new("RGB", (64, 48)).save(root / "JPEGImages/a.jpg")
        Image.new("P", (64, 48)).save(root / "SegmentationClass/a.png")
        (root / "ImageSets/Segmentation/val.txt").write_text("a\n")
        with pytest.raises(ValueError, match="needs an AMDForSemanticSegmentation with 21 labels"):
            evaluate("voc2012", root)


def test_contact_sheet_needs_thumbnails():
    with pytest.raises(ValueError, match="at least one scored row with a picture"):
        results_sheet([{"name": "a", "J": 0.1}], {}, "J")


def test_class_segmentation(tmp_path, tiny_config, processor):
    from amd_hf import AMDConfig, AMDForSemanticSegmentation

    root = write_images(tmp_path / "voc", 3)
    (root / "images").rename(root / "JPEGImages")
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "SegmentationClass").mkdir()
    for path in (root / "masks").glob("*.png"):
        labels = np.where(np.asarray(Image.open(path)), 3, 0).astype(np.uint8)
        labels[:2] = 255
        Image.fromarray(labels, mode="L").save(root / "SegmentationClass" / path.name)
    (root / "ImageSets/Segmentation/val.txt").write_text("0\n1\n2\n")
    model = AMDForSemanticSegmentation(AMDConfig.tiny(num_labels=21)).eval()
    result = evaluate_benchmark(model, processor, "voc2012", root, progress=False)
    json.dumps(result, allow_nan=False)
    assert result["oracle"] is None
    assert 0 <= result["selected"]["mean_iou"] <= 1
    assert len(result["rows"]) == 3
    assert result["per_class"]["bird"] is not None


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"batch_size": 4}, {"autocast": "bfloat16"}])
def test_batch_and_precision_keep_the_scores_of_the_bundled_model(tmp_path, options):
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    for number in range(24):
        frames, masks = generate_clip(1, 96, 128, number)
        Image.fromarray(frames[0]).save(tmp_path / f"images/{number}.jpg", quality=95)
        Image.fromarray(masks[0]).save(tmp_path / f"masks/{number}.png")
    model = AMDModel.from_pretrained(DEFAULT_CHECKPOINT).eval()
    processor = AMDImageProcessor.from_pretrained(DEFAULT_CHECKPOINT)

    def scores(**options):
        settings = {"progress": False, "num_bootstrap": 0, **options}
        return evaluate_benchmark(model, processor, "ecssd", tmp_path, **settings)["selected"]

    changed, plain = scores(**options), scores()
    assert plain["max_f_beta"] > 0.1  # the model sees something, so that something could change
    assert changed == pytest.approx(plain, abs=1e-3)


def test_random_control_is_the_same_in_every_thread(tiny_model: AMDModel) -> None:
    """Processes that a test plays by threads share PyTorch's generator; so do an app's threads."""

    def weights() -> torch.Tensor:
        return torch.cat([value.flatten() for value in random_model(tiny_model, 3).parameters()])

    expected = weights()
    with ThreadPoolExecutor(4) as pool:
        drawn = list(pool.map(lambda _: weights(), range(16)))
    assert all(torch.equal(found, expected) for found in drawn)
