"""One section in a process of its own: `python -m benchmarks.gpu.frame.child NAME ...`, started by gpu_check.

A CUDA error may poison the process: it then ends with POISONED, and gpu_check starts another one after the case that
failed. The state file says which case is under way, so that one that hangs can be ended from outside.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import gc
import importlib
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

import torch

from benchmarks.gpu.frame.report import AbsentError, Report, stamp_of
from engines.cuda.errors import translated
from engines.cuda.ops import sum_in_float32
from engines.errors import BackendError

POISONED = 17


def run(report: Report, state: Path, skip: int = 0) -> int:
    """Run the section's cases after the first `skip`; returns the exit code."""
    section = importlib.import_module(f"benchmarks.gpu.sections.{report.section}")
    sum_in_float32(report.section != "inductor")  # as we serve, and torch's own as torch has it
    gc.freeze()  # what is imported stays; every capture of a graph collects garbage, and would look at all of it
    late: list[str] = []
    cases = section.cases(report)
    for index, case in enumerate(cases):
        if index < skip:
            continue
        if report.seconds_left <= 0:
            late.append(case.name)
            continue
        state.write_text(f"{index}\n{case.seconds or ''}\n{case.name}")
        try:
            case.run()
            _settle(report)
        except AbsentError as absent:
            report.tell("wrong" if absent.wrong else "absent", case.name, str(absent))
        except Exception as error:
            known = translated(error)
            if not isinstance(known, BackendError):  # of the machine: no line of ours is at fault
                traceback.print_exc()
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(last.filename).name}:{last.lineno}"
            first_line = (str(error).strip().splitlines() or [""])[0]
            report.tell("failed", case.name, f"{known or f'{type(error).__name__}: {first_line}'} (at {where})")
            del error, known
            try:
                _settle(report)
            except RuntimeError:
                print(f"{report.section}: the device is poisoned; a new process goes on", flush=True)
                cases.close()
                return POISONED
    for name in late:
        report.tell("skipped", name, "skipped: time")
    state.write_text("")  # no case is under way
    return 0


def _settle(report: Report) -> None:
    """Wait for the device, so that an error is reported of the case that made it; give its memory back."""
    if not report.dry:
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


@torch.no_grad()
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.gpu.frame.child")
    parser.add_argument("section")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--file", type=Path, action="append", required=True)
    parser.add_argument("--stamp", required=True)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--until", type=float, required=True, help="time.time() after which no case begins")
    parser.add_argument("--skip", type=int, default=0)
    parser.add_argument("--parent", type=int, help="process id; ends when that has ended")
    options = parser.parse_args(argv)
    faulthandler.enable()  # a crash says where; so does SIGUSR1, which gpu_check sends before it ends what hangs
    faulthandler.register(signal.SIGUSR1)
    if options.parent:
        threading.Thread(target=_end_with, args=(options.parent,), daemon=True).start()
    device = torch.device("cpu" if options.dry_run else "cuda")
    until = time.monotonic() + options.until - time.time()
    dtype = torch.float32 if options.dry_run else torch.float16
    if options.dry_run:
        torch.set_num_threads(1)
    report = Report(options.section, device, dtype, options.file, stamp_of(options.stamp), until)
    return run(report, options.state, options.skip)


def _end_with(parent: int) -> None:
    """End with the parent: a session of its own outlives it and would hold the card; nobody waits for its rows then."""
    while os.getppid() == parent:
        time.sleep(1)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # all rows are on disk, and what a library does wrong while it unloads is nobody's finding
