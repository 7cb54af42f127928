"""The configuration: presets, validation with clear texts, and a lossless round trip."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoConfig

from amd_hf import AMDConfig

PRESETS = ["official", "small", "tiny"]


def test_defaults_are_the_published_model() -> None:
    config = AMDConfig()
    assert config.to_dict() == AMDConfig.official().to_dict()
    assert config.num_segments == 5
    assert config.block_counts == [3, 4, 6, 3]
    assert config.block_strides == [1, 2, 1, 1]
    assert config.block_dilations == [1, 1, 1, 2]
    assert config.output_stride == 8
    assert config.motion_size == [384, 640]
    assert config.search_range == 4
    assert (config.l1_weight, config.ssim_weight) == (0.15, 0.85)
    assert config.scale_weights == [1.0, 1.0, 1.0, 1.0, 0.0]
    assert config.visibility_threshold == 0.2
    assert not config.normalize_cost_volume
    assert config.motion_initialization == "default"


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_take_overrides(preset: str) -> None:
    config = getattr(AMDConfig, preset)(num_segments=3, object_segment=2, head_channels=12)
    assert (config.num_segments, config.object_segment, config.head_channels) == (3, 2, 12)


@pytest.mark.parametrize("preset", PRESETS)
def test_round_trip(tmp_path: Path, preset: str) -> None:
    config = getattr(AMDConfig, preset)(object_segment=1, object_segment_confidence=0.75)
    config.save_pretrained(tmp_path)
    for loaded in (AMDConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert isinstance(loaded, AMDConfig)
        for name in AMDConfig.__annotations__:
            assert getattr(loaded, name) == getattr(config, name), name
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["model_type"] == "amd"
    assert stored["motion_size"] == list(config.motion_size)


def test_labels_of_semantic_segmentation() -> None:
    config = AMDConfig.tiny(num_labels=3)
    assert config.num_labels == 3
    assert config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}


def test_fields_are_keyword_only() -> None:
    with pytest.raises(ValueError, match="only keyword arguments"):
        AMDConfig(5)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"num_segments": 1}, "`num_segments` must be at least 2"),
        ({"num_segments": -3}, "`num_segments` must be at least 2"),
        ({"object_segment": 5}, r"`object_segment` must be an index in 0\.\.4, got 5"),
        ({"object_segment": -1}, r"`object_segment` must be an index in 0\.\.4, got -1"),
        ({"object_segment_confidence": 1.5}, "`object_segment_confidence` must be None or lie in"),
        ({"num_channels": 1}, r"`num_channels` must be 3 \(RGB frames\), got 1"),
        ({"image_mean": [0.5]}, "`image_mean` must have 3 values"),
        ({"image_std": [1.0, 0.0, 1.0]}, "`image_std` must be positive"),
        ({"block_counts": [3, 4, 6]}, "`block_counts`, `block_strides` and `block_dilations`"),
        ({"block_counts": [0, 4, 6, 3]}, "`block_counts` must hold positive integers"),
        ({"block_dilations": [1, 1, 1, 0]}, "`block_dilations` must hold positive integers"),
        ({"stem_channels": 0}, "`stem_channels` must be positive, got 0"),
        ({"head_dropout": 1.0}, r"`head_dropout` must lie in \[0, 1\), got 1.0"),
        ({"motion_size": [100, 640]}, r"`motion_size` must be .* multiples of 64 .* got \[100"),
        ({"motion_size": [384]}, "`motion_size` must be"),
        ({"num_motion_levels": 7}, r"`num_motion_levels` must lie in 1\.\.6"),
        ({"num_motion_levels": 0}, r"`num_motion_levels` must lie in 1\.\.6"),
        ({"estimator_channels": [8, 8]}, "`estimator_channels` must have 5 entries"),
        ({"scale_weights": [1.0, 1.0]}, r"`scale_weights` must have one weight per motion level"),
        ({"scale_weights": [0.0] * 5}, "`scale_weights` must .* at least one must be positive"),
        ({"search_range": 0}, "`search_range` must be at least 1, got 0"),
        ({"scale_weights": [1, 1, 1, 1, -1]}, "`scale_weights` must not be negative"),
        ({"motion_initialization": "xavier"}, '"default" or "kaiming", got "xavier"'),
        ({"l1_weight": -0.1}, "`l1_weight` must not be negative"),
        ({"visibility_threshold": -1}, "`visibility_threshold` must not be negative"),
    ],
)
def test_errors_name_the_field(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        AMDConfig(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"num_segments": "5"},
        {"num_segments": 2.5},
        {"head_dropout": "none"},
        {"block_counts": 3},
        {"zero_init_residual": "yes"},
        {"motion_initialization": None},
    ],
)
def test_wrong_types_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(StrictDataclassFieldValidationError, match=next(iter(fields))):
        AMDConfig(**fields)


def test_integers_serve_where_numbers_are_meant() -> None:
    config = AMDConfig(head_dropout=0, l1_weight=1, image_std=[1, 1, 1])
    assert config.head_dropout == 0


def test_unknown_field_warns_with_the_nearest_name(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="amd_hf.configuration_amd"):
        AMDConfig.tiny(num_segmets=4)
    assert "`num_segmets` is not a field" in caplog.text
    assert "did you mean `num_segments`?" in caplog.text


def test_known_fields_and_round_trips_do_not_warn(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        AMDConfig.tiny(num_labels=4, id2label={0: "a", 1: "b", 2: "c", 3: "d"}).save_pretrained(
            tmp_path
        )
        AMDConfig.from_pretrained(tmp_path)
    assert caplog.text == ""


def test_pipeline_entry_of_a_saved_model_is_ignored_where_the_package_is_installed() -> None:
    # Otherwise transformers asks for trust_remote_code although the pipeline is registered.
    entry = {"zero-shot-object-segmentation": {"impl": "pipeline_amd.Pipeline"}}
    assert not hasattr(AMDConfig.tiny(custom_pipelines=entry), "custom_pipelines")


@pytest.mark.parametrize(
    "fields_of_every_configuration",
    [{"dtype": "load"}, {"dtype": "\U0001f3a5"}, {"dtype": ["x"]}, {"id2label": "cat"}],
)
def test_senseless_fields_of_transformers(fields_of_every_configuration: dict[str, Any]) -> None:
    """`dtype` would be looked up in torch, whatever it names."""
    values = {**AMDConfig.tiny().to_dict(), **fields_of_every_configuration}
    with pytest.raises((ValueError, StrictDataclassFieldValidationError), match=r"dtype|id2label"):
        AMDConfig.from_dict(values)


@pytest.mark.parametrize("text", ["[]", "3", '"text"', "[" * 100_000])
def test_a_configuration_that_is_no_object(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises((ValueError, OSError), match=str(tmp_path)):
        AMDConfig.from_pretrained(tmp_path)
