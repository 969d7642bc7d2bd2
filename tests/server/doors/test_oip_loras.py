"""The Open Inference Protocol's text of LoRAs, as it is read."""

from __future__ import annotations

import pytest

from pipeline.errors import InvalidRequest
from server.doors.oip.infer_request import _loras


def test_names_and_weights() -> None:
    assert _loras("one:0.8, two:-1e0,,three") == [("one", 0.8), ("two", -1.0), ("three", 1.0)]
    with pytest.raises(InvalidRequest, match="loras has 'one:heavy'; it takes name:weight"):
        _loras("one:heavy")


def test_a_text_that_would_take_seconds_is_refused_unread() -> None:
    with pytest.raises(InvalidRequest, match="loras has 16777216 characters; at most 10000 are taken"):
        _loras("a," * (8 << 20))
