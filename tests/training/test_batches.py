"""What every phase shares: the number format that it computes in."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch

from tests.support.training import tiny
from training import batches, run
from training.batches import Context
from training.processes import Processes
from training.run import Run


@pytest.mark.parametrize("wanted", [False, True])
@pytest.mark.parametrize("native", [False, True])
def test_bfloat16_only_where_it_is_wanted_and_multiplied(
    wanted: bool, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "multiplies_bfloat16", lambda device: native)
    nobody = cast(Any, None)
    with Context(tiny(), Path(), nobody, nobody, nobody).autocast(wanted):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype is (torch.bfloat16 if wanted and native else torch.float32)


def test_a_run_says_that_it_computes_in_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "multiplies_bfloat16", lambda device: False)
    said: list[str] = []
    Run(tiny(bfloat16=True), tmp_path / "run", Processes(), said.append).close()
    assert said[1:] == ["this processor does not multiply bfloat16: every phase computes in float32"]
