"""Where a job's time went: moments in, parts that add up out."""

from __future__ import annotations

import pytest

from server.events import PARTS, Timings


def timings(**moments: float) -> Timings:
    whole = {"seated": 1.0, "encoded": 1.5, "evaluated": 4.0, "decoding": 4.25, "decoded": 5.0, "written": 5.5}
    return Timings(arrived=0.5, **{**whole, "delivered": 5.625, **moments})


def test_the_parts_add_up_to_the_time_from_arrival_to_delivery() -> None:
    parts = timings().parts(99.0)
    assert list(parts.values()) == [0, 500, 500, 2500, 250, 750, 0, 500, 125] and tuple(parts) == PARTS
    assert sum(parts.values()) == 1e3 * (5.625 - 0.5)


def test_pictures_that_come_with_it_are_read_and_those_that_it_may_keep_are_judged() -> None:
    parts = timings(read=0.75, judged=5.25).parts(99.0)
    assert list(parts.values()) == [250, 250, 500, 2500, 250, 750, 250, 250, 125]
    assert sum(parts.values()) == 1e3 * (5.625 - 0.5)


def test_a_picture_that_waits_for_the_judge_is_not_a_file_yet() -> None:
    parts = Timings(0.5, seated=1.0, encoded=1.5, evaluated=4.0, decoding=4.0, decoded=5.0, judged=0.0).parts(9.0)
    assert (parts["judge"], parts["file"], parts["delivery"]) == (4000, 0, 0)


def test_a_picture_that_was_decoded_before_anothers_last_step() -> None:
    """Its file was the last to be there all the same, of a slow format, say."""
    parts = timings(decoding=2.0, decoded=3.0).parts(99.0)
    assert (parts["denoise"], parts["decode_wait"], parts["decode"], parts["file"]) == (2500, 0, 0, 1500)
    assert sum(parts.values()) == 1e3 * (5.625 - 0.5)


@pytest.mark.parametrize(
    ("reached", "longest"), [(("seated",), "encode"), (("seated", "encoded"), "denoise"), ((), "queue")]
)
def test_who_did_not_come_that_far_spent_the_rest_there(reached: tuple[str, ...], longest: str) -> None:
    moments = {"seated": 1.0, "encoded": 1.5}
    parts = Timings(0.5, **{name: moments[name] for name in reached}).parts(10.5)
    assert sum(parts.values()) == 1e4 and max(parts, key=parts.__getitem__) == longest
    assert all(parts[name] == 0 for name in PARTS[PARTS.index(longest) + 1 :])
