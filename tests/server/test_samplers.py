"""The samplers through the device: what is refused, and what a client is told of steps that take two evaluations."""

from __future__ import annotations

import numpy as np
import pytest

from engines.model import Model
from pipeline.errors import InvalidRequest
from server.events import Done, Preview, Step
from tests.support.jobs import alone, box_of, job_of, running

APPLE = {"prompt": "a red apple", "seed": 3}


def test_lcm_is_refused_past_its_steps(model: Model) -> None:
    assert job_of(model, sampler="lcm", steps=50).wish.table.evaluations == 50
    with pytest.raises(InvalidRequest, match="steps is 51; sampler lcm takes 1 to 50"):
        job_of(model, sampler="lcm", steps=51)


@pytest.mark.parametrize(("sampler", "evaluations"), [("heun", 11), ("pndm", 7), ("euler_a", 6), ("lcm", 6)])
def test_events_count_steps_and_work_counts_evaluations(model: Model, sampler: str, evaluations: int) -> None:
    asked = {**APPLE, "sampler": sampler, "steps": 6}
    with running(model) as at_work:
        job = job_of(model, at_work.device.sizes, **asked, preview_every=2)
        job.timings.evaluations = []
        at_work.device.submit(job)
        box = box_of(job)
        assert isinstance(box.end(), Done)
    told = [event.step for event in box.events if isinstance(event, Step)]
    assert told == sorted(set(told)) and told[-1] == 6, "of several at once the last is told"
    assert {event.step for event in box.events if isinstance(event, Preview)} <= {2, 4}
    assert len(job.timings.seats) == len(job.timings.evaluations) == evaluations
    assert {evaluation.step for evaluation in job.timings.evaluations} >= set(range(1, 7)), "each step is counted"
    np.testing.assert_array_equal(box.images[0], alone(model, **asked))
