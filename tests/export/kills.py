"""Real kills: SIGKILL at random moments of an export, then the same command again; by hand, not in CI.

    python -m tests.export.kills [--times 50] [--model DIR]
    python -m tests.export.kills --times 50 --watch DIR [--ignore 'devices/*'] -- python -m engines build MODEL ...

Without a command: an export into a new OUT, one over an older artifact, and a first use of plans' checkpoint, each
in turn. After each kill every artifact below the watched folder is opened: it must be refused, or be the same
bytes as an undisturbed run's or as what lay there. After every fifth kill the command runs to its end, and must leave
exactly the files of the undisturbed run; then all starts from nothing.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from engines.artifact.opened import MANIFEST, open_artifact
from pipeline.errors import CheckpointError
from tests.support.checkpoints import make_checkpoint

_RUNS = 5  # kills between two whole runs
_FIRST_USE = "import sys; from pathlib import Path; from engines.artifact.first_use import artifact_of; "
_FIRST_USE += "from pipeline.checkpoint.opened import open_checkpoint; artifact_of(open_checkpoint(Path(sys.argv[1])))"


@dataclass(frozen=True)
class Work:
    name: str
    command: list[str]
    watch: Path  # the folder that the command writes into
    before: Path | None = None  # what lies in it at first
    ignore: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()

    def start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self.command,
            env={**os.environ, **dict(self.environment)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,  # so that its children are killed with it
        )

    def finish(self) -> float:
        """Seconds of a whole run, which must succeed."""
        begin = time.monotonic()
        process = self.start()
        _, told = process.communicate()
        assert process.returncode == 0, f"{self.name} failed: {told.decode(errors='replace')[-2000:]}"
        return time.monotonic() - begin

    def reset(self) -> None:
        shutil.rmtree(self.watch, ignore_errors=True)
        if self.before:
            shutil.copytree(self.before, self.watch / self.before.name)

    def files(self) -> dict[str, str]:
        """SHA-256 of every file below, by name; nothing that a killed process left may be among them in the end."""
        paths = sorted(path for path in self.watch.rglob("*") if path.is_file())
        names = {path.relative_to(self.watch).as_posix(): path for path in paths}
        kept = {name for name in names if not any(fnmatch.fnmatch(name, pattern) for pattern in self.ignore)}
        return {name: hashlib.sha256(names[name].read_bytes()).hexdigest() for name in sorted(kept)}


def found(work: Work, whole: dict[str, str]) -> str:
    """What a reader would find now. Raises for a half-written artifact that is taken for a whole one."""
    states, known = [], {*whole.values()}
    if work.before:
        known |= {hashlib.sha256(path.read_bytes()).hexdigest() for path in work.before.rglob("*") if path.is_file()}
    for manifest in work.watch.rglob(MANIFEST):
        if not (manifest.parent / "model_index.json").exists():
            continue  # an engine's, which its own store checks
        try:
            open_artifact(manifest.parent)
        except CheckpointError:
            states.append("refused")
            continue
        for path in (path for path in manifest.parent.rglob("*") if path.is_file()):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            assert digest in known, f"{path} is of an artifact, and is not what an undisturbed run writes"
        states.append("whole")
    return " and ".join(sorted(states)) or "no manifest"


def kill(work: Work, seconds: float, dice: random.Random) -> bool:
    """Start and kill at a random moment; False where it was faster."""
    process = work.start()
    try:
        process.wait(dice.uniform(0, seconds))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return True
    return False


def torment(work: Work, times: int, dice: random.Random) -> None:
    work.reset()
    seconds = work.finish()
    whole, killed, states = work.files(), 0, Counter[str]()
    print(f"{work.name}: {seconds:.1f} s undisturbed, {len(whole)} files", flush=True)
    work.reset()
    while killed < times:
        if kill(work, seconds, dice):
            killed += 1
            states[found(work, whole)] += 1
        if killed % _RUNS == 0 or killed == times:
            seconds = work.finish()  # a machine is not always equally busy
            got = work.files()
            differ = sorted(name for name in got.keys() | whole.keys() if got.get(name) != whole.get(name))
            assert not differ, f"{work.name}, after {killed} kills: {differ}"
            work.reset()
    print(f"{work.name}: {killed} kills, found {dict(states)}; every run afterwards gave the same bytes", flush=True)


def exports(place: Path, model: Path) -> list[Work]:
    export = [sys.executable, "-W", "ignore", "-m", "export", str(model), "--out"]
    threads = (("OMP_NUM_THREADS", "1"),)  # the errors in the manifest go with the number of threads
    cache = ("LATENTD_CACHE", str(place / "cache"))
    older = make_checkpoint(place / "older", kind="sd2")
    subprocess.run(
        [*export[:5], str(older), "--out", str(place / "before/tiny")], env=os.environ | dict([cache]), check=True
    )
    first_use = [sys.executable, "-c", _FIRST_USE, str(model)]
    return [
        Work("a new OUT", [*export, str(place / "new/tiny")], place / "new", environment=(*threads, cache)),
        Work(
            "over another artifact",
            [*export, str(place / "over/tiny")],
            place / "over",
            before=place / "before/tiny",
            environment=(*threads, cache),
        ),
        Work("first use", first_use, place / "cache", ignore=(".lock-*",), environment=(*threads, cache)),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", type=Path, help="a checkpoint folder without graphs (default: a tiny one)")
    parser.add_argument("--watch", type=Path, help="what the command writes into; it is emptied")
    parser.add_argument("--ignore", action="append", default=[], help="names below --watch that may differ")
    parser.add_argument("command", nargs="*")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.command:
            works = [Work(" ".join(options.command), options.command, options.watch, ignore=tuple(options.ignore))]
        else:
            works = exports(Path(folder), options.model or make_checkpoint(Path(folder) / "tiny"))
        for number, work in enumerate(works):
            share = (options.times + len(works) - 1 - number) // len(works)
            torment(work, share, random.Random(f"{options.seed} {work.name}"))
