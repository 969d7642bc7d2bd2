"""An export that ends, or finds a full or broken disk, at each write, sync, rename and removal in turn.

Afterwards the same command does the whole work and leaves the same bytes; and at no moment was anything opened as an
artifact that is none. Networks are not loaded, traced or checked anew: what is tried is what is written, and when.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import export.artifact as stage
from engines import disk
from engines.artifact import GRAPHS, MANIFEST, Artifact, is_artifact, open_artifact
from engines.disk import DiskError
from export.artifact import export
from export.preview import PreviewMap
from export.single_file import convert as single
from pipeline.errors import CheckpointError
from tests.export.original import make_folder, write_original

Work = Callable[[], object]
Before = Callable[[str, Path], None]
ENDED = 77  # the status of a process that an injected exit ended


@pytest.fixture(scope="module")
def source(artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint alone."""
    copy = Path(shutil.copytree(artifact.folder, tmp_path_factory.mktemp("source") / "tiny"))
    for name in (*GRAPHS.values(), MANIFEST):
        (copy / name).unlink()
    return copy


@pytest.fixture(autouse=True)
def quick(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graphs and figures of an export that was made: what is left out here writes nothing."""
    told: dict[Path, stage.Inspected] = {}
    graphs = {network.name: artifact.graph(network.name).read_bytes() for network in stage.NETWORKS}
    traced: Iterator[str] = iter(())

    def trace(*_: object) -> bytes:
        nonlocal traced
        name = next(traced, None)
        if name is None:
            traced = iter(graphs)
            name = next(traced)
        return graphs[name]

    def inspect(checkpoint: Path) -> stage.Inspected:
        nonlocal traced
        traced = iter(graphs)
        if checkpoint not in told:
            told[checkpoint] = kept(checkpoint)
        return told[checkpoint]

    class Ran:
        def run(self, *_: object) -> list[list[float]]:
            return [[0.0]]

    kept = stage.inspect
    monkeypatch.setattr(os, "fsync", lambda _: None)  # the power stays on; each would wait for a busy disk
    monkeypatch.setattr(stage, "inspect", inspect)
    networks = [replace(network, load=lambda *_: None) for network in stage.NETWORKS]
    monkeypatch.setattr(stage, "NETWORKS", networks)
    monkeypatch.setattr(stage, "trace", trace)
    monkeypatch.setattr(stage.check, "session", lambda path: Ran())
    monkeypatch.setattr(stage.check, "network_error", lambda *_: 1e-6)
    monkeypatch.setattr(stage.check, "trajectory_error", lambda *_: 1e-6)
    monkeypatch.setattr(stage, "fit_preview", lambda *_: PreviewMap([[0.5] * 4] * 3, 0.7))


def files(folder: Path) -> dict[str, str]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def quiet(_: str) -> None:
    pass


def moments(work: Work, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What an undisturbed run does to the disk."""
    told: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(disk, "before", lambda doing, path: told.append(f"{doing} {path.name}"))
        work()
    return told


def at(moment: int, do: Callable[[], None], look: Callable[[], None] = lambda: None) -> Before:
    """Looks before every change, and at the given one does `do`; from then on everything goes well."""
    count = -1

    def before(doing: str, path: Path) -> None:
        nonlocal count
        count += 1
        look()
        if count == moment:
            do()

    return before


def in_a_child(work: Work, before: Before) -> int:
    """The work in a process of its own, which `before` may end: its exit status."""
    child = os.fork()
    if child == 0:
        try:
            disk.before = before
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def end() -> None:
    os._exit(ENDED)


def failing(number: int) -> Callable[[], None]:
    def fail() -> None:
        raise OSError(number, os.strerror(number))

    return fail


class Place:
    """Where an export goes; `reset` makes it as it was at first."""

    def __init__(self, source: Path, folder: Path, kind: str) -> None:
        self.source, self.folder, self.kind = source, folder, kind

    def reset(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.kind == "in place":
            shutil.copytree(self.source, self.folder)
        elif self.kind == "over another":  # an artifact of other weights, and what a killed export left there
            shutil.copytree(self.source, self.folder)
            (self.folder / "unet/diffusion_pytorch_model.safetensors").write_bytes(b"another's")
            (self.folder / ".new-manifest.json-1-0").write_bytes(b"half")
            (self.folder / "unet/.new-model.onnx-1-0").write_bytes(b"half")

    def work(self) -> None:
        if self.kind == "in place":
            export(self.folder, None, quiet)
        else:
            export(self.source, self.folder, quiet)


@pytest.mark.parametrize("kind", ["OUT", "in place", "over another"])
def test_every_moment(source: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(source, tmp_path / "tiny", kind)
    place.reset()
    told = moments(place.work, monkeypatch)
    whole = files(place.folder)
    assert sum(name == f"replace {MANIFEST}" for name in told) == 1
    assert {word.split()[0] for word in told} >= {"write", "sync", "replace"} and len(told) > 15
    assert open_artifact(place.folder)

    def look() -> None:
        """What a server would find there now: nothing, or a refusal, or all of it."""
        if is_artifact(place.folder):
            try:
                open_artifact(place.folder)
            except CheckpointError:
                return
            assert files_of_artifact(place.folder, whole), "half of an export was taken for an artifact"

    for moment, doing in enumerate(told):
        place.reset()
        assert in_a_child(place.work, at(moment, end, look)) == ENDED, doing
        look()
        place.work()
        assert files(place.folder) == whole, f"after an exit at {doing}"
    for number in {"OUT": (errno.ENOSPC, errno.EIO), "in place": (errno.ENOSPC,)}.get(kind, ()):
        for moment, doing in enumerate(told):
            place.reset()
            with monkeypatch.context() as patch, pytest.raises(DiskError) as caught:
                patch.setattr(disk, "before", at(moment, failing(number), look))
                place.work()
                pytest.fail(f"{doing}: {os.strerror(number)} went unnoticed")
            message = str(caught.value)
            assert str(place.folder) in message and os.strerror(number) in message and message.isprintable()
            look()
            left = [name for name in files(place.folder) if "/.new-" in f"/{name}"]
            assert not left or kind == "over another" or doing.startswith("remove"), f"{doing} left {left}"
            place.work()
            assert files(place.folder) == whole, f"after {os.strerror(number)} at {doing}"


def files_of_artifact(folder: Path, whole: dict[str, str]) -> bool:
    return {name: digest for name, digest in files(folder).items() if "/.new-" not in f"/{name}"} == whole


def test_an_export_in_place_over_an_older_artifact(source: Path, tmp_path: Path) -> None:
    """At no moment does the older manifest vouch for a newer graph, nor the newer for an older one."""
    folder = Path(shutil.copytree(source, tmp_path / "tiny"))
    export(folder, None, quiet)
    older = files(folder)
    place = Place(folder, folder, "in place")
    seen: list[dict[str, str] | None] = []

    def look(doing: str, path: Path) -> None:
        try:
            open_artifact(folder)
            seen.append(files(folder))
        except CheckpointError:
            seen.append(None)

    before, disk.before = disk.before, look
    try:
        place.work()
    finally:
        disk.before = before
    assert seen[0] == older and None in seen
    assert all(found in (None, older) for found in seen), "the same bytes come again: the export is deterministic"
    assert seen.index(None) == 1, "the manifest goes first"


def test_a_single_file_at_every_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a conversion leaves half done is no checkpoint, and the same command makes it whole."""
    folder = make_folder(tmp_path / "folder", "sd1", levels=2)
    file, out = write_original(folder, "sd1", tmp_path / "m.safetensors", levels=2), tmp_path / "out"
    monkeypatch.setattr(single, "check_finite", list)  # reads only
    monkeypatch.setattr(single, "tokenizer_files", lambda **_: {"vocab.json": b"{}", "merges.txt": b""})

    def work() -> None:
        single.convert(file, out, say=quiet)

    told = moments(work, monkeypatch)
    whole = files(out)
    assert len(told) > 30 and not [name for name in whole if "/.new-" in f"/{name}"]
    for moment, doing in enumerate(told):
        shutil.rmtree(out)
        if moment % 2:
            assert in_a_child(work, at(moment, end)) == ENDED, doing
        else:
            with monkeypatch.context() as patch, pytest.raises(DiskError, match="No space left"):
                patch.setattr(disk, "before", at(moment, failing(errno.ENOSPC)))
                work()
        renamed = moment > told.index("replace model_index.json")
        assert (out / "model_index.json").exists() == renamed, doing
        work()
        assert files(out) == whole, doing
