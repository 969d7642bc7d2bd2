"""Whether another model fits beside the one that is served, in numbers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from engines.errors import OutOfMemory
from engines.machine import spare_memory
from engines.model import Model
from pipeline.checkpoint.opened import Checkpoint
from server.models.room import Room


def test_a_model_takes_what_the_first_one_took_and_its_further_weights(
    model: Model, sd1_checkpoint: Checkpoint
) -> None:
    held, free = iter((1000, 5000)), 0
    room = Room(lambda: next(held), lambda: free)
    assert room.needed(model.checkpoint) is None
    room.check(model.checkpoint)  # nothing was measured, so nothing is refused
    room.loaded(model)
    more = sd1_checkpoint.weights.total - model.checkpoint.weights.total
    assert more > 0
    assert room.needed(model.checkpoint) == round(1.1 * 4000)
    assert room.needed(sd1_checkpoint) == round(1.1 * (4000 + more))
    free = round(1.1 * (4000 + more))
    room.check(sd1_checkpoint)
    free -= 1
    with pytest.raises(OutOfMemory, match="it would take about .* beside the model that is served, and .* are free"):
        room.check(sd1_checkpoint)


def test_a_backend_of_float32_copies_takes_twice_the_weights(model: Model, sd1_checkpoint: Checkpoint) -> None:
    held = iter((0, 4000))
    room = Room(lambda: next(held), lambda: None)

    class Copies:
        name, precision = "torch", "f32"

    room.loaded(dataclasses.replace(model, backend=Copies()))  # type: ignore[arg-type]
    more = sd1_checkpoint.weights.total - model.checkpoint.weights.total
    assert room.needed(sd1_checkpoint) == round(1.1 * (4000 + 2 * more))
    room.check(sd1_checkpoint)  # where the system does not tell what is free, nothing is refused


def test_memory_is_read_with_the_limits_of_the_cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process, groups = tmp_path / "proc", tmp_path / "cgroup"
    (process).mkdir()
    (process / "status").write_text("Name:\tx\nRssAnon:\t    2048 kB\n")
    (tmp_path / "meminfo").write_text("MemTotal: 9000000 kB\nMemAvailable:    1000000 kB\n")
    assert spare_memory.anonymous(process) == 2 << 20
    monkeypatch.setattr(spare_memory, "_CGROUP", groups)
    read = lambda: spare_memory.available(process, tmp_path / "meminfo")  # noqa: E731
    assert read() == 1_000_000 << 10
    (process / "cgroup").write_text("4:memory:/a/b\n0::/c\n")
    for folder, names in (("c", ("memory.max", "memory.current")), ("memory/a", ("memory.limit_in_bytes",) * 2)):
        (groups / folder).mkdir(parents=True)
        for name in names:
            (groups / folder / name).write_text("max\n")
    (groups / "c/memory.max").write_text(f"{100 << 20}\n")
    (groups / "c/memory.current").write_text(f"{60 << 20}\n")
    (groups / "c/memory.stat").write_text(f"anon 5\ninactive_file {10 << 20}\n")
    assert read() == 50 << 20, "v2: what the kernel takes back is free"
    (groups / "memory/a/memory.limit_in_bytes").write_text(f"{80 << 20}\n")
    (groups / "memory/a/memory.usage_in_bytes").write_text(f"{60 << 20}\n")
    assert read() == 20 << 20, "v1, of a group above"
    (groups / "memory/a/memory.usage_in_bytes").write_text(f"{90 << 20}\n")
    assert read() == 0
