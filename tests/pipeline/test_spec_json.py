"""A spec goes to another process and comes back; what is no spec is refused in words."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import CheckpointError
from pipeline.spec import Spec, read_spec
from pipeline.spec_json import spec_from_json

DEMO = read_spec(Path(__file__).parents[2] / "demo/small-things")


@pytest.fixture
def values() -> dict[str, Any]:
    return json.loads(json.dumps(DEMO.to_json()))


def test_there_and_back(values: dict[str, Any]) -> None:
    assert spec_from_json(values) == DEMO
    assert isinstance(spec_from_json(values).unet.channels, tuple)


def test_what_came_later_may_be_missing_and_a_whole_number_is_a_number(values: dict[str, Any]) -> None:
    del values["unet"]["guidance_width"]
    values["unet"]["freq_shift"] = 0
    spec = spec_from_json(values)
    assert spec == DEMO and isinstance(spec.unet.freq_shift, float)


@pytest.mark.parametrize("spec", [None, [], "spec", 3])
def test_what_is_no_object(spec: object) -> None:
    with pytest.raises(CheckpointError, match=r"^spec is .*; it must be an object"):
        spec_from_json(spec)


@pytest.mark.parametrize(
    ("part", "field", "value", "message"),
    [
        ("unet", "groups", "8", "spec.unet.groups is '8'; it must be int"),
        ("unet", "groups", True, "spec.unet.groups is True; it must be int"),
        ("unet", "groups", 8.0, "spec.unet.groups is 8.0; it must be int"),
        ("unet", "eps", float("nan"), "spec.unet.eps is nan; it must be float"),
        ("unet", "eps", True, "spec.unet.eps is True; it must be float"),
        ("unet", "linear_projection", 1, "spec.unet.linear_projection is 1; it must be bool"),
        ("unet", "channels", 64, "spec.unet.channels is 64; it must be a list of at most 64"),
        ("unet", "channels", [1] * 65, "it must be a list of at most 64"),
        ("unet", "channels", [64, None, 128], "spec.unet.channels[1] is None; it must be int"),
        ("schedule", "spacing", 3, "spec.schedule.spacing is 3; it must be str or null"),
        ("vae", "depth", 3, "spec.vae has a field 'depth', which this version does not know"),
    ],
)
def test_a_field_that_is_wrong(values: dict[str, Any], part: str, field: str, value: object, message: str) -> None:
    values[part][field] = value
    with pytest.raises(CheckpointError) as caught:
        spec_from_json(values)
    assert message in str(caught.value)


def test_a_field_that_is_missing(values: dict[str, Any]) -> None:
    for part, field in (("text", "eps"), ("unet", "channels"), ("vae", "groups")):
        broken = deepcopy(values)
        del broken[part][field]
        with pytest.raises(CheckpointError, match=f"^spec.{part}.{field} is missing$"):
            spec_from_json(broken)
    assert isinstance(spec_from_json(values), Spec)
