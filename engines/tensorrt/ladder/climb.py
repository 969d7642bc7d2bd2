"""python -m engines trt-check: tries what works of our TensorRT plans on a machine that has TensorRT's libraries.

It is a ladder, each rung in a process of its own with a time limit, since what fails here may take its process down or
hang it: import, a plugin that adds one, attention within 48 KB of shared memory, attention beyond, one block, the whole
UNet. Where a plugin fails, what stands above it runs with TensorRT's own attention. It ends in one log that can be
pasted into an issue.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engines.errors import BackendError
from engines.process.tether import end_with_parent, tether
from engines.tensorrt.api import api, choose_target

RUNGS = {
    "import": "TensorRT imports, is new enough and sees a GPU",
    "add_one": "a plugin that adds one",
    "attention": "attention within 48 KB of shared memory",
    "attention_large": "attention beyond 48 KB",
    "block": "one transformer block",
    "unet": "the whole UNet",
}
RESULT = "rung: "  # what a rung's process writes last begins so
PACKAGES = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "triton", "torch", "onnx", "onnxruntime", "numpy")


@dataclass(frozen=True)
class Outcome:
    """The end of one rung. verdict: "ok", "failed", "died" (its process), "too long", or "skipped"."""

    rung: str
    attention: str
    verdict: str
    seconds: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        what = RUNGS[self.rung] + (f", {self.attention}" if self.rung in ("block", "unet") else "")
        listed = ", ".join(f"{name} {value}" for name, value in self.facts.items() if name != "trace")
        return f"{self.verdict:8} {what} ({self.seconds:.0f} s){': ' if listed else ''}{listed}"


Run = Callable[[str, str], Outcome]


def climb(run: Run, say: Callable[[str], None]) -> list[Outcome]:
    """Try every rung that those below it allow. `run` takes a rung and "native" or "triton"."""
    outcomes: list[Outcome] = []

    def step(rung: str, attention: str) -> bool:
        outcomes.append(run(rung, attention))
        say(str(outcomes[-1]))
        return outcomes[-1].verdict == "ok"

    def skip(rung: str, attention: str, why: str) -> None:
        outcomes.append(Outcome(rung, attention, "skipped", facts={"because": why}))
        say(str(outcomes[-1]))

    if not step("import", "native"):
        return outcomes
    plugins, why = step("add_one", "triton"), "no plugin works here"
    for rung in ("attention", "attention_large"):
        if not plugins:
            skip(rung, "triton", why)
        elif not step(rung, "triton") and rung == "attention":
            plugins, why = False, "attention as a plugin does not work here"
    for rung in ("block", "unet"):
        step(rung, "native")
        if not plugins:
            skip(rung, "triton", why)
        elif not step(rung, "triton"):
            plugins, why = False, f"{RUNGS[rung]} does not work with the plugin"
            say(f"         falling back to native: {why}")
    return outcomes


def conclusion(outcomes: list[Outcome]) -> str:
    """Say in one sentence what to serve with."""
    good = {o.attention: o for o in outcomes if o.rung == "unet" and o.verdict == "ok"}
    if not good:
        return "The UNet does not run here with backend tensorrt."
    times = {kind: o.facts.get("milliseconds") for kind, o in good.items()}
    listed = ", ".join(f"{kind} {ms} ms" for kind, ms in times.items())
    if "triton" not in good:
        return f"Serve with --attention native; the plugin is not to be used here ({listed})."
    if "native" in good and (times["native"] or 0) < (times["triton"] or 0):
        return f"Both work; --attention native is the faster here ({listed})."
    return f"Serve with --attention triton ({listed})."


def versions() -> dict[str, str]:
    facts = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    for name in PACKAGES:
        try:
            facts[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    try:
        command = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        listing = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        facts["gpu, driver"] = "; ".join(listing.stdout.split("\n")).strip("; ")
    except (OSError, subprocess.SubprocessError):
        facts["gpu, driver"] = "nvidia-smi says nothing"
    return facts


def in_a_process(model: Path, limit: float, command: list[str] | None = None) -> Run:
    """Return a Run that runs `command` RUNG ATTENTION MODEL, for at most `limit` seconds."""
    start = command or [sys.executable, "-m", "engines.tensorrt.ladder.climb"]

    def run(rung: str, attention: str) -> Outcome:
        begin = time.monotonic()
        try:
            with tether() as (end, environment):
                ran = subprocess.run(
                    [*start, rung, attention, str(model)],
                    env=environment,
                    pass_fds=[end],
                    capture_output=True,
                    text=True,
                    timeout=limit,
                    check=False,
                )
        except subprocess.TimeoutExpired as error:
            trace = error.stderr.decode(errors="replace") if isinstance(error.stderr, bytes) else error.stderr or ""
            return Outcome(rung, attention, "too long", limit, {"limit": f"{limit:.0f} s", "trace": trace})
        seconds = time.monotonic() - begin
        lines = [line for line in ran.stdout.splitlines() if line.startswith(RESULT)]
        if ran.returncode < 0 or not lines:
            facts = {"status": ran.returncode, "trace": ran.stderr}
            return Outcome(rung, attention, "died", seconds, facts)
        facts = json.loads(lines[-1].removeprefix(RESULT))
        verdict = "failed" if "error" in facts else "ok"
        return Outcome(
            rung, attention, verdict, seconds, facts | ({"trace": ran.stderr} if verdict == "failed" else {})
        )

    return run


def trt_check(model: Path, log: Path, limit: float, run: Run | None = None) -> int:
    """Climb, write the log, and return an exit status: 0 if the UNet runs, in whatever way."""
    if run is None:
        try:
            api(rtx=False)  # nothing to report where there is nothing
        except BackendError as error:
            print(f"trt-check: {error}", file=sys.stderr)
            return 1
    lines: list[str] = []

    def say(line: str) -> None:
        print(line, flush=True)
        lines.append(line)

    for name, value in versions().items():
        say(f"{name}: {value}")
    outcomes = climb(run or in_a_process(model, limit), say)
    say(conclusion(outcomes))
    for outcome in outcomes:
        if trace := outcome.facts.get("trace"):
            lines += ["", f"--- {outcome.rung}, {outcome.attention}", *str(trace).splitlines()[-40:]]
    log.write_text("\n".join(lines) + "\n")
    print(f"The log is {log}; paste it into an issue.")
    return 0 if any(o.rung == "unet" and o.verdict == "ok" for o in outcomes) else 1


# What follows runs in a rung's own process.


def rung_facts(rung: str, attention: str, model: Path) -> dict[str, Any]:
    """Run one rung in this process, and return its facts, with "error" where it fails."""
    trt = api(rtx=False)
    target = choose_target(trt, None, rtx=False)
    if rung == "import":
        from engines.tensorrt.serve.plan import device_facts

        return {"tensorrt": trt.__version__, **device_facts()}
    from engines.tensorrt.ladder import cases as cases

    if rung == "add_one":
        case = cases.add_one()
    elif rung == "block":
        case = cases.block(attention)
    elif rung == "unet":
        from engines.artifact.first_use import artifact_of
        from pipeline.checkpoint.opened import open_checkpoint

        case = cases.unet(attention, artifact_of(open_checkpoint(model)))
    else:
        case = cases.attention(attention, large=rung == "attention_large")
    return build_and_compare(trt, case, target)


def build_and_compare(trt: Any, case: Any, target: str) -> dict[str, Any]:
    """Build a case's plan, run it, and say how far its output is from what was expected."""
    import numpy as np

    from engines.tensorrt.build.builder import port
    from engines.tensorrt.build.inspection import inspection
    from engines.tensorrt.plugins.register import register
    from engines.tensorrt.serve.engine import TensorRtEngine
    from engines.tensorrt.serve.plan import Plan

    logger = trt.Logger(trt.Logger.WARNING)
    shared = 0
    if case.plugins:
        trtp = importlib.import_module("tensorrt.plugin")
        shared = max(p.shared for p in register(trtp, case.plugins, int(target.removeprefix("sm_"))))
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    begin = time.monotonic()
    if not parser.parse(case.model.SerializeToString(), str(case.path or "")):
        return {"error": "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))}
    ports = {
        "inputs": [port(network.get_input(i)) for i in range(network.num_inputs)],
        "outputs": [port(network.get_output(i)) for i in range(network.num_outputs)],
    }
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        return {"error": "TensorRT built no plan"}
    built = time.monotonic() - begin
    ours = TensorRtEngine(trt, bytes(plan), ports)
    runner = Plan(ours)
    (out,) = runner.run(case.inputs).values()
    error = float(np.abs(out.astype(np.float64) - case.expected).max())
    facts = {
        "milliseconds": round(runner.milliseconds(), 3),
        "max error": f"{error:.2e}",
        "tolerance": f"{case.tolerance:.2e}",
        "build": f"{built:.1f} s",
        "plan": f"{plan.nbytes >> 10} kB",
        "scratch": f"{ours.workspace >> 10} kB",
        "layers": len(json.loads(inspection(trt, ours.raw)).get("Layers", [])),
    }
    if case.plugins:
        facts["shared memory of a plugin"] = f"{shared} bytes"
    if not error <= case.tolerance:  # NaN too
        facts["error"] = "the numbers are wrong"
    return facts


def _rung(argv: list[str]) -> None:
    rung, attention, model = argv
    end_with_parent()  # who is killed cannot end a rung that hangs
    try:
        facts = rung_facts(rung, attention, Path(model))
    except Exception as error:
        import traceback

        traceback.print_exc()
        facts = {"error": _sentence(error)}
    print(RESULT + json.dumps(facts), flush=True)


def _sentence(error: Exception) -> str:
    """Put an error into a sentence, with what mends it where that is known: memory, a compiler, a driver."""
    try:
        from engines.cuda.errors import translated
    except ImportError:  # torch is what is missing
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return str(translated(error) or f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


if __name__ == "__main__":
    _rung(sys.argv[1:])
