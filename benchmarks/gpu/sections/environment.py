"""The machine as it is found: versions, card, driver, clocks. Nothing is changed."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.gpu.frame.report import AbsentError, Case, Report

_FIELDS = (
    "name,driver_version,pstate,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.draw,power.limit,"
    "temperature.gpu,memory.total,memory.used,persistence_mode,ecc.mode.current"
)
_WHEELS = """
    torch triton numpy grpcio grpcio-health-checking grpcio-reflection grpcio-status protobuf tokenizers safetensors
    pillow tqdm prometheus-client PyYAML diffusers transformers onnx onnxruntime tensorrt nvidia-ml-py psutil
""".split()  # noqa: SIM905


def cases(report: Report) -> Iterator[Case]:
    yield Case("machine", lambda: _machine(report))
    yield Case("wheels", lambda: _wheels(report))
    yield Case("card", lambda: _card(report))
    yield Case("nvidia-smi", lambda: _smi(report))


def _fact(report: Report, what: str, value: object) -> None:
    report.row("fact", what, "", "", [], note=str(value))


def _machine(report: Report) -> None:
    _fact(report, "python", platform.python_version())
    _fact(report, "kernel", platform.release())
    _fact(report, "cores", len(os.sched_getaffinity(0)))
    _fact(report, "cache", os.environ.get("TRITON_CACHE_DIR", "default"))
    # Triton compiles launchers with it, against Python's own header: without either, every kernel of ours fails.
    _fact(report, "compiler", os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang") or "none: no Triton")
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    _fact(report, "header", header if header.exists() else f"no {header}: no Triton")


def _wheels(report: Report) -> None:
    here = []
    for name in _WHEELS:
        try:
            here.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            here.append(f"{name} -")
    _fact(report, "wheels", ", ".join(here))


def _card(report: Report) -> None:
    if report.dry:
        raise AbsentError("no card in a dry run")
    facts = torch.cuda.get_device_properties(report.device)
    _fact(report, "capability", f"{facts.major}.{facts.minor}")
    _fact(report, "multiprocessors", facts.multi_processor_count)
    _fact(report, "memory", f"{facts.total_memory / 2**30:.1f} GiB, free {torch.cuda.mem_get_info()[0] / 2**30:.1f}")
    _fact(report, "L2", f"{getattr(facts, 'L2_cache_size', 0) / 2**20:.0f} MiB")
    _fact(report, "cuDNN", torch.backends.cudnn.version())


def _smi(report: Report) -> None:
    values = smi(_FIELDS)
    names = _FIELDS.split(",")
    if len(values) != len(names):  # a driver that knows other names
        names, values = ["nvidia-smi"], [", ".join(values)]
    for name, value in zip(names, values, strict=True):
        _fact(report, name, value)


def smi(fields: str) -> list[str]:
    """Ask nvidia-smi about the first card. Raises AbsentError without it."""
    command = ["nvidia-smi", "--id=0", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AbsentError(f"nvidia-smi: {error}") from None
    if ran.returncode:
        raise AbsentError(f"nvidia-smi: {ran.stdout.strip() or ran.stderr.strip()}")
    return [value.strip() for value in ran.stdout.splitlines()[0].split(",")]
