"""An export that ends, or finds a full or broken disk, at each write, sync, rename and removal in turn.

OUT is at every moment what it was before or all of the new artifact. Afterwards the same command does the whole work,
leaves the same bytes, and nothing beside them. Networks are not loaded, traced or checked anew: what is tried is what
is written, and when.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import export.artifact as stage
from engines.artifact.opened import MANIFEST, Artifact, open_artifact
from engines.cache import disk
from engines.cache.disk import DiskError
from export.artifact import export
from pipeline.checkpoint.opened import Checkpoint
from pipeline.checkpoint.weights import Weights
from tests.support.layouts import files, state

Before = Callable[[str, Path], None]
ENDED = 77  # the status of a process that an injected exit ended


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left out here writes nothing."""

    class Ran:
        def run(self, *_: object) -> list[list[float]]:
            return [[0.0]]

    monkeypatch.setattr(os, "fsync", lambda _: None)  # the power stays on; each would wait for a busy disk
    networks = [replace(network, load=lambda *_: None) for network in stage.NETWORKS]
    monkeypatch.setattr(stage, "NETWORKS", networks)
    monkeypatch.setattr(stage, "check_weights", lambda *_: None)
    monkeypatch.setattr(Weights, "digest", lambda _: "")
    monkeypatch.setattr(stage.parity, "session", lambda path: Ran())
    monkeypatch.setattr(stage.parity, "network_error", lambda *_: 1e-6)
    monkeypatch.setattr(stage.parity, "trajectory_error", lambda *_: 1e-6)


def quiet(_: str) -> None:
    pass


class Place:
    """Where an export goes; `reset` makes it as it was at first: nothing, or an artifact of another model."""

    def __init__(self, checkpoint: Checkpoint, out: Path, older: Path | None) -> None:
        self.checkpoint, self.out, self.older = checkpoint, out, older

    def reset(self) -> None:
        shutil.rmtree(self.out.parent, ignore_errors=True)
        self.out.parent.mkdir()
        if self.older:
            shutil.copytree(self.older, self.out)

    def work(self) -> None:
        export(self.checkpoint, self.out, quiet)

    def beside(self) -> list[str]:
        return [path.name for path in self.out.parent.iterdir() if path != self.out]


def undisturbed(place: Place, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a run does to the disk; until the last of it OUT is as it was."""
    done: list[str] = []
    first = state(place.out)

    def before(doing: str, path: Path) -> None:
        assert (state(place.out) == first) == (f"replace {place.out.name}" not in done)
        done.append(f"{doing} {path.name}")

    with monkeypatch.context() as patch:
        patch.setattr(disk, "before", before)
        place.work()
    return done


def at(moment: int, do: Callable[[], None]) -> Before:
    """At that change of the disk does `do`; before and after it everything goes well."""
    numbers = itertools.count()

    def before(doing: str, path: Path) -> None:
        if next(numbers) == moment:
            do()

    return before


def end() -> None:
    os._exit(ENDED)


def full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def killed(place: Place, moment: int) -> None:
    """The work in a process of its own, which ends at that moment."""
    child = os.fork()
    if child == 0:
        try:
            disk.before = at(moment, end)
            place.work()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == ENDED
    assert len(place.beside()) <= 1, "what an earlier one left is gone"


def failed(place: Place, moment: int) -> None:
    """The work on a disk that is full at that moment."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(DiskError) as caught:
        patch.setattr(disk, "before", at(moment, full))
        place.work()
    message = str(caught.value)
    assert str(place.out.parent) in message and "No space left on device" in message and message.isprintable()
    assert not place.beside(), "nothing is left"


def moments(done: list[str], every: bool) -> list[int]:
    """Number the changes of the disk; of many alike in a row, such as the tensors of a file, three unless `every`."""
    rows = [[number for number, _ in row] for _, row in itertools.groupby(enumerate(done), key=lambda one: one[1])]
    return [number for row in rows for number in row if every or number in (row[0], row[len(row) // 2], row[-1])]


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("fault", [killed, failed])
def test_every_moment(
    every: bool,
    checkpoint: Checkpoint,
    v_artifact: Artifact,
    tmp_path: Path,
    fault: Callable[[Place, int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = Place(checkpoint, tmp_path / "place/tiny", v_artifact.folder)
    place.reset()
    source = state(checkpoint.path)
    done = undisturbed(place, monkeypatch)
    whole = files(place.out)
    assert not place.beside() and open_artifact(place.out).spec == checkpoint.spec
    assert {word.split()[0] for word in done} >= {"make", "write", "half", "sync", "replace"} and len(done) > 50
    replaced = done.index("replace tiny")
    assert f"sync {MANIFEST}" in done[replaced - 3 : replaced], "the manifest is the last that is written"

    place.reset()
    first = state(place.out)
    tried = moments(done, every)
    assert len(tried) >= len(set(done)) and replaced in tried
    for moment in tried[: tried.index(replaced) + 1]:
        fault(place, moment)
        assert state(place.out) == first, f"{done[moment]}: OUT is no longer what it was"
    place.work()
    assert files(place.out) == whole and not place.beside(), "the same command mends it"
    for moment in range(replaced + 1, len(done)):  # the names are synced, and the older artifact goes
        place.reset()
        if done[moment].startswith("remove") and fault is failed:
            with monkeypatch.context() as patch:
                patch.setattr(disk, "before", at(moment, full))
                place.work()  # the export is there all the same
        else:
            fault(place, moment)
        assert files(place.out) == whole, done[moment]
        place.work()
        assert files(place.out) == whole and not place.beside(), done[moment]
    assert state(checkpoint.path) == source, "the checkpoint is only read"


@pytest.mark.parametrize("empty", [True, False])
def test_an_out_that_is_new(
    checkpoint: Checkpoint, tmp_path: Path, empty: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the one rename it holds nothing."""
    place = Place(checkpoint, tmp_path / "place/tiny", None)
    done: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(disk, "before", lambda doing, path: done.append(f"{doing} {path.name}"))
        place.reset()
        place.work()
    whole, replaced = files(place.out), done.index("replace tiny")
    for moment in range(replaced - 1, replaced + 2):
        place.reset()
        if empty:
            place.out.mkdir()
        killed(place, moment)
        assert files(place.out) == (whole if moment > replaced else {}) and place.out.exists() == (
            empty or moment > replaced
        )
        place.work()
        assert files(place.out) == whole and not place.beside(), done[moment]


def test_two_exports_at_once(checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The later one does not sweep away what the earlier one, which lives, is writing."""
    out, inner = tmp_path / "tiny", []

    def other(doing: str, path: Path) -> None:
        if doing == "sync" and path.name == MANIFEST and not inner:
            inner.append(path)
            export(checkpoint, out, quiet)
            inner.append(files(out))

    monkeypatch.setattr(disk, "before", other)
    export(checkpoint, out, quiet)
    assert inner[1] == files(out) and os.listdir(tmp_path) == ["tiny"]


def test_what_other_exports_left_beside_it_stays(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Names are no patterns."""
    for name in (".exporting-other-0123abcd", ".exporting-[ab]-0123abcd", ".exporting-a-0123abcd"):
        (tmp_path / name).mkdir()
    export(checkpoint, tmp_path / "[ab]", quiet)
    assert sorted(os.listdir(tmp_path)) == [".exporting-a-0123abcd", ".exporting-other-0123abcd", "[ab]"]


def test_out_is_a_link_to_the_folder(checkpoint: Checkpoint, v_artifact: Artifact, tmp_path: Path) -> None:
    shutil.copytree(v_artifact.folder, tmp_path / "real/place")
    (tmp_path / "out").symlink_to("real/place")
    made = export(checkpoint, tmp_path / "out", quiet)
    assert made.folder == tmp_path / "real/place" and made.spec == checkpoint.spec
    assert os.readlink(tmp_path / "out") == "real/place" and os.listdir(tmp_path / "real") == ["place"]
