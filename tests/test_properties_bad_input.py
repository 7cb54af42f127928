"""Readers of names, JSON and arrays under any input: a documented error, or a usable result."""

from __future__ import annotations

import math
import posixpath
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub.errors import StrictDataclassError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from amd_hf import AMDConfig
from amd_hf.data import sources
from amd_hf.data.archives import check_member_name
from amd_hf.data.semantic_images import parse_label_names
from amd_hf.image_io_amd import read_image
from amd_hf.training.arguments import PretrainingArguments

FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -(2**63), math.nan, math.inf, 1e308])
    | st.floats()
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
NAMES = st.text(st.characters(exclude_categories=[]), max_size=12) | st.sampled_from(
    ["²1", "1²", "١٢", "9" * 6000, "a/../../b", "..\\..\\b", "/etc", "~/x", "a\0b"]
)
FLOAT_FIELDS = [
    name
    for name, value in vars(PretrainingArguments(dataset="x", output_dir="y")).items()
    if isinstance(value, float)
]


def attempt(
    call: Callable[[], Any], errors: tuple[type[Exception], ...] = (ValueError,)
) -> tuple[Any, str | None]:
    """The result of a call, or the message of its documented error."""
    try:
        return call(), None
    except errors as error:
        return None, str(error)


@FEW
@given(st.lists(NAMES, max_size=6))
def test_any_names_can_be_sorted(names: list[str]) -> None:
    assert len(sorted(names, key=sources.natural_key)) == len(names)
    numbers = sources.frame_numbers([f"{name}.jpg" for name in names])
    assert numbers is None or list(numbers) == sorted(set(numbers))


@FEW
@given(NAMES)
def test_accepted_members_stay_inside(name: str) -> None:
    _, refusal = attempt(lambda: check_member_name(Path("a.tar"), name))
    if refusal is not None:
        assert "a.tar" in refusal
        return
    place = posixpath.normpath(posixpath.join("/root/inside", name.replace("\\", "/")))
    assert place.startswith("/root/inside")


@FEW
@given(st.dictionaries(st.sampled_from(["fps", "frame_step"]), JSON), JSON)
def test_any_json_of_a_clip(meta: dict[str, Any], numbers: Any) -> None:
    rate, refusal = attempt(lambda: sources.stored_rate(meta, None, [], meta))
    assert refusal is None or "frame_step" in refusal
    assert rate is None or 0 < rate < math.inf
    found, refusal = attempt(lambda: sources.stored_numbers(numbers, 2))
    assert refusal is None or "ascending" in refusal
    assert found is None or (len(found) == 2 and found[0] < found[1])


@FEW
@given(st.dictionaries(st.sampled_from(sorted(AMDConfig.__annotations__)), JSON, max_size=3))
def test_any_configuration(values: dict[str, Any]) -> None:
    changed = {**AMDConfig.tiny().to_dict(), **values}
    config, refusal = attempt(
        lambda: AMDConfig.from_dict(changed), (ValueError, StrictDataclassError)
    )
    if refusal is not None:
        assert any(name in refusal for name in values)
        return
    for name in AMDConfig.__annotations__:
        value = getattr(config, name)
        for number in value if isinstance(value, list) else [value]:
            assert not isinstance(number, float) or math.isfinite(number)


@pytest.mark.parametrize("field", sorted(AMDConfig.__annotations__))
@pytest.mark.parametrize("value", [math.nan, math.inf, [], [0], -1, None, "x", {}])
def test_senseless_fields_are_refused_by_name(field: str, value: Any) -> None:
    if field == "object_segment_confidence" and value is None:
        return  # means that it was chosen by hand
    if field == "negative_slope" and value == -1:
        return  # any finite slope
    if field in ("image_mean", "head_dropout") and value == -1:
        return
    with pytest.raises((ValueError, StrictDataclassError), match=field):
        AMDConfig.tiny(**{field: value})


@FEW
@given(
    arrays.arrays(
        st.sampled_from(["u1", "i2", "u2", "i8", "f2", "f4", "f8", "?", "c8", "U3", "O", "M8[s]"]),
        arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
    )
)
def test_any_array_is_an_image_or_refused(array: np.ndarray) -> None:
    image, refusal = attempt(lambda: read_image(array))
    if refusal is not None:
        assert refusal
        return
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[2] == 3


@FEW
@given(st.text(max_size=40))
def test_any_text_as_class_names(text: str) -> None:
    names, refusal = attempt(lambda: parse_label_names(text))
    assert refusal is not None or len(set(names)) == len(names) > 0


@pytest.mark.parametrize("field", FLOAT_FIELDS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_options_of_training_are_finite(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"`{field}` must be a finite number"):
        PretrainingArguments(dataset="x", output_dir="y", **{field: value})
