"""What this GPU can do, and what latentd does on it: `python -m benchmarks.gpu_check` (make gpu-check).

Needs torch, triton and numpy only: no weights, no network. Every section runs in a process of its own with a time
limit, so that neither an error that poisons the device nor a kernel that hangs stops the next one; rows are written as
they are measured, to benchmarks/results/ and, if it is set, to the folder `$OUT`. `SECTIONS=a,b` chooses (`all`: all).
Exit codes: 0 all well, 1 something failed or is wrong, 2 no NVIDIA GPU, or nothing chosen that there is.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.frame import summary
from benchmarks.gpu.frame.report import WRONG, read_rows, write_row
from benchmarks.gpu.frame.sections import ALONE, DEFAULT, TOTAL, Section, chosen
from engines.cuda import gpu

ROOT = Path(__file__).parent.parent
POISONED = 17  # benchmarks.gpu.frame.child's word for: begin again after the case that failed
_RESTARTS = 6  # of one section
_START = 90.0  # seconds until the first case: a cold disk, an import of torch, a context


@dataclass(frozen=True)
class Run:
    """Holds what all sections of one call share."""

    stamp: dict[str, str]
    files: list[Path]
    dry: bool
    scratch: Path
    log: Path | None

    def section(self, section: Section, until: float) -> None:
        """Run a section in child processes, begun again after a case that ended one, until it is done or time is up."""
        skip = 0
        for _ in range(_RESTARTS):
            state = self.scratch / f"{section.name}.state"
            state.unlink(missing_ok=True)
            ended = self._child(section, state, until, skip)
            if ended == "0":
                return
            index, _, case = read_state(state)
            if ended != str(POISONED):  # that one has told of its case itself
                self._tell(section, case or "start", ended if ended.startswith("ended") else f"exit code {ended}")
            if not index or time.time() > until:
                return
            skip = int(index) + 1
        self._tell(section, "the rest", f"{_RESTARTS} processes of this section were lost")

    def _child(self, section: Section, state: Path, until: float, skip: int) -> str:
        """Run a child process; returns the exit code, or why it was ended."""
        command = [sys.executable, "-u", "-m", "benchmarks.gpu.frame.child", section.name, "--until", str(until)]
        command += ["--stamp", json.dumps(self.stamp), "--state", str(state), "--skip", str(skip)]
        command += ["--parent", str(os.getpid())]
        command += [word for path in self.files for word in ("--file", str(path))] + ["--dry-run"] * self.dry
        environment = os.environ | ({"TRITON_INTERPRET": "1"} if self.dry else {})
        with subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # so that compilers' workers end with it
        ) as process:
            reader = threading.Thread(target=self._echo, args=(process,), daemon=True)
            reader.start()
            try:
                ended = self._watch(process, section, state, until)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                reader.join(timeout=5)
        return ended

    def _watch(self, process: subprocess.Popen[str], section: Section, state: Path, until: float) -> str:
        now, since = ("", "", ""), time.time()
        while True:
            try:
                return str(process.wait(timeout=0.2))
            except subprocess.TimeoutExpired:
                pass
            index, seconds, _ = case = read_state(state)
            if case != now:
                now, since = case, time.time()
            limit = float(seconds or section.case_seconds) if index else _START
            hangs = time.time() - since > limit
            if hangs or time.time() > until + section.grace:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGUSR1)  # it prints where its threads are
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=1)
                return f"ended: {limit:g} s in one case" if hangs else "ended: time"

    def _echo(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout
        for line in process.stdout:
            self.say(line.rstrip("\n"))

    def say(self, line: str) -> None:
        print(line, flush=True)
        if self.log:
            with self.log.open("a") as file:
                file.write(line + "\n")

    def _tell(self, section: Section, case: str, why: str) -> None:
        # Out of time is no fault of a section that fits: its rows say how far it came.
        status = "skipped" if why == "ended: time" and section.grace else "failed"
        self.say(f"  {section.name}, {case}: {status.upper()}: {why}")
        middle = ["case", case, "", "", "", "", "", "", "", "", "", "", status, why]
        write_row(self.files, [section.name, *middle, *self.stamp.values()])


def read_state(path: Path) -> tuple[str, str, str]:
    """Read the case that is under way: its number, its limit in seconds, and its name; empty where there is none."""
    parts = path.read_text().split("\n", 2) if path.exists() else []
    return (parts[0], parts[1], parts[2]) if len(parts) == 3 else ("", "", "")


def environment(dry: bool) -> dict[str, str]:
    """Return what every row is stamped with. Errors: SystemExit 2 without torch or an NVIDIA GPU."""
    try:
        import torch

        from engines.cuda import ready
    except ModuleNotFoundError:
        print("gpu-check needs torch, which this Python does not have", file=sys.stderr)
        raise SystemExit(2) from None
    # torch is the judge: a driver may be where engines/cuda/gpu.py does not look for it.
    why_not = "" if dry else ready.why_not() if torch.cuda.is_available() else gpu.why_not() or "torch sees none"
    if why_not:
        print(f"gpu-check measures nothing but an NVIDIA GPU: {why_not}", file=sys.stderr)
        raise SystemExit(2)
    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = ""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    name = "CPU" if dry else torch.cuda.get_device_name(0)
    versions = {"torch": torch.__version__, "triton": triton, "cuda": torch.version.cuda or ""}
    return {"device": name, **versions, "date": now}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description="Measures latentd on a GPU.")
    parser.add_argument("--sections", default=os.environ.get("SECTIONS", ""), help=f"default {','.join(DEFAULT)}")
    limits = f"for all of them (default: {TOTAL:g}, or {ALONE:g} each if chosen by name)"
    parser.add_argument("--seconds", type=float, help=limits)
    parser.add_argument("--dry-run", action="store_true", help="run the code, not the measurement: tiny, on the CPU")
    options = parser.parse_args(argv)
    try:
        sections = chosen(options.sections)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    each = [(section, ALONE if options.sections else section.seconds) for section in sections]
    return measure(each, options.seconds or (ALONE * len(each) if options.sections else TOTAL), options.dry_run)


def measure(sections: list[tuple[Section, float]], total: float, dry: bool) -> int:
    """Run each section for so many seconds at most, and all of them for `total`; returns the exit code."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the section's processes end, too
    start, stamp = time.time(), environment(dry)
    slug = re.sub(r"[^a-z0-9]+", "-", stamp["device"].lower()).strip("-")
    name = f"gpu-{slug}-{stamp['date'][:10]}"
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(os.environ["OUT"]).resolve() if os.environ.get("OUT") else None
        folders = [Path(scratch) if dry else ROOT / "benchmarks" / "results", *([out] if out else [])]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        files = [folder / f"{name}.csv" for folder in folders]
        run = Run(stamp, files, dry, Path(scratch), out / f"{name}.log" if out else None)
        for section, seconds in sections:
            left = start + total - time.time()
            run.say(f"{section.name} ({time.time() - start:.0f} s)")
            if left > 5:
                run.section(section, time.time() + min(left, seconds))
            else:
                run._tell(section, "all", "ended: time")
            for path in files:
                summary.write(path)
        return _close(run, time.time() - start)


def _close(run: Run, seconds: float) -> int:
    rows = [row for row in read_rows(run.files[0]) if row["date"] == run.stamp["date"]]
    for line in summary.target_lines(summary.latest(rows)):
        if "| not measured |" not in line:
            run.say(line)
    wrong = [row for row in rows if row["status"] in WRONG]
    late = sum(row["status"] == "skipped" for row in rows)
    for row in wrong:
        words = (row["section"], row["what"], row["case"], row["mode"], row["p50"], row["note"])
        run.say(f"{row['status'].upper()}: " + ", ".join(word for word in words if word))
    where = ", ".join(map(str, run.files))
    run.say(f"{seconds:.0f} s, {len(rows)} rows, {len(wrong)} wrong, {late} skipped; rows are in {where}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
