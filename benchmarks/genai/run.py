"""OpenVINO GenAI's side of benchmarks.loading, run by an interpreter that has it: FOLDER SIDE START, figures as JSON.

START is time.monotonic() when the process was started. Nothing of latentd is imported here.
"""

from __future__ import annotations

import json
import os
import re
import resource
import sys
import time
from pathlib import Path
from typing import Any


def memory() -> dict[str, float]:
    status = Path("/proc/self/status").read_text()
    return {name: int(kb) * 1024 / 1e6 for name, kb in re.findall(r"^(VmHWM|RssAnon|RssFile):\s+(\d+)", status, re.M)}


def drawn(pipeline: Any, side: int, steps: int) -> tuple[float, float]:
    """Draw a picture of so many unguided steps; returns seconds, and those of CPU time."""
    start, cpu = time.monotonic(), time.process_time()
    pipeline.generate("red apple", num_inference_steps=steps, guidance_scale=1.0, width=side, height=side)
    return time.monotonic() - start, time.process_time() - cpu


def main() -> None:
    folder, side, start = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    os.environ["CI"] = "1"  # openvino_telemetry posts and writes to HOME without it
    import openvino_genai  # pyright: ignore[reportMissingImports] - of the other interpreter

    imported = time.monotonic()
    pipeline = openvino_genai.Text2ImagePipeline(folder)
    pipeline.reshape(1, side, side, 1.0)  # one picture, guidance 1: the UNet gets one row
    pipeline.compile("CPU", INFERENCE_PRECISION_HINT="bf16")
    compiled = time.monotonic()
    used = resource.getrusage(resource.RUSAGE_SELF)
    loaded = memory()
    drawn(pipeline, side, 1)
    pictured = time.monotonic()
    after = memory()
    (one, one_cpu), (four, four_cpu) = (drawn(pipeline, side, steps) for steps in (1, 4))
    figures = {
        "version": openvino_genai.__version__,
        "whole": compiled - start,
        "compile": compiled - imported,
        "cpu": used.ru_utime + used.ru_stime,
        "picture": pictured - compiled,
        "loaded_peak": loaded["VmHWM"],
        "peak": after["VmHWM"],
        "anonymous": after["RssAnon"],
        "file": after["RssFile"],
        "step": (four - one) / 3,
        "step_cpu": (four_cpu - one_cpu) / 3,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
