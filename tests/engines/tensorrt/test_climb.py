"""The ladder's logic, its processes, and its graphs: all of `make trt-check` but TensorRT itself."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, helper

from engines.artifact.opened import Artifact
from engines.tensorrt.ladder import cases
from engines.tensorrt.ladder.cases import Case
from engines.tensorrt.ladder.climb import (
    RESULT,
    RUNGS,
    Outcome,
    build_and_compare,
    climb,
    conclusion,
    in_a_process,
    trt_check,
)
from kernels.plugins import NAMESPACE
from pipeline.checkpoint.opened import open_checkpoint
from tests.support.plugin_doubles import body
from tests.support.tensorrt_bindings import ROOT, run_with_bindings, stand_in

EVERYTHING = [
    ("import", "native"),
    ("add_one", "triton"),
    ("attention", "triton"),
    ("attention_large", "triton"),
    ("block", "native"),
    ("block", "triton"),
    ("unet", "native"),
    ("unet", "triton"),
]


def test_without_tensorrt_it_says_so_in_one_sentence(tmp_path: Path) -> None:
    assert importlib.util.find_spec("tensorrt") is None, "this test is for machines without it"
    log = tmp_path / "log"
    command = [sys.executable, "-m", "engines", "trt-check", "--log", str(log)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 1 and ran.stdout == ""
    assert ran.stderr.count("\n") == 1
    assert ran.stderr.startswith("trt-check: backend tensorrt needs tensorrt, which is not installed")
    assert not log.exists()


def climbed(*failing: tuple[str, str]) -> tuple[list[tuple[str, str]], list[Outcome], list[str]]:
    """What ran, what came of it, and what was said, where these rungs fail."""
    ran: list[tuple[str, str]] = []
    said: list[str] = []

    def run(rung: str, attention: str) -> Outcome:
        ran.append((rung, attention))
        bad = (rung, attention) in failing
        return Outcome(
            rung, attention, "failed" if bad else "ok", 1.0, {"milliseconds": 3 if attention == "native" else 2}
        )

    return ran, climb(run, said.append), said


def test_the_whole_ladder() -> None:
    ran, outcomes, said = climbed()
    assert ran == EVERYTHING and {o.verdict for o in outcomes} == {"ok"} and len(said) == len(EVERYTHING)
    assert {rung for rung, _ in ran} == set(RUNGS)
    assert conclusion(outcomes) == "Serve with --attention triton (native 3 ms, triton 2 ms)."


@pytest.mark.parametrize(
    ("failing", "skipped", "verdict"),
    [
        (("add_one", "triton"), {"attention", "attention_large", "block", "unet"}, "Serve with --attention native;"),
        (("attention", "triton"), {"attention_large", "block", "unet"}, "Serve with --attention native;"),
        (("attention_large", "triton"), set(), "Serve with --attention triton"),
        (("block", "native"), set(), "Serve with --attention triton"),
        (("block", "triton"), {"unet"}, "Serve with --attention native;"),
        (("unet", "triton"), set(), "Serve with --attention native;"),
        (("unet", "native"), set(), "Serve with --attention triton"),
    ],
)
def test_a_rung_that_fails_falls_back_to_native(failing: tuple[str, str], skipped: set[str], verdict: str) -> None:
    ran, outcomes, said = climbed(failing)
    assert ran == [step for step in EVERYTHING if step[1] == "native" or step[0] not in skipped]
    assert [(o.rung, o.attention) for o in outcomes] == EVERYTHING, "what did not run is listed as well"
    assert {o.rung for o in outcomes if o.verdict == "skipped"} == skipped
    assert all("because" in o.facts for o in outcomes if o.verdict == "skipped")
    assert conclusion(outcomes).startswith(verdict)
    fell = failing in [("block", "triton"), ("unet", "triton")]
    assert fell == any("falling back to native" in line for line in said)


def test_nothing_stands_on_an_import_that_fails() -> None:
    ran, outcomes, _ = climbed(("import", "native"))
    assert ran == [("import", "native")] and conclusion(outcomes) == "The UNet does not run here with backend tensorrt."


def test_the_faster_of_two_that_work() -> None:
    ok = [Outcome("unet", kind, "ok", facts={"milliseconds": ms}) for kind, ms in (("native", 2), ("triton", 3))]
    assert conclusion(ok) == "Both work; --attention native is the faster here (native 2 ms, triton 3 ms)."


@pytest.mark.parametrize(
    ("code", "verdict", "told"),
    [
        (f"print({RESULT!r} + '{{\"milliseconds\": 2}}')", "ok", {"milliseconds": 2}),
        (
            f"import sys; print('x', file=sys.stderr); print({RESULT!r} + '{{\"error\": \"no\"}}')",
            "failed",
            {"error": "no", "trace": "x\n"},
        ),
        ("import os; os.abort()", "died", {"status": -6, "trace": ""}),
        ("import sys; sys.exit('gone')", "died", {"status": 1, "trace": "gone\n"}),
        ("import threading; threading.Event().wait()", "too long", {"limit": "2 s", "trace": ""}),
    ],
)  # fmt: skip
def test_a_rung_in_its_process(code: str, verdict: str, told: dict[str, Any]) -> None:
    limit = 2.0 if verdict == "too long" else 60.0
    outcome = in_a_process(Path("m"), limit, [sys.executable, "-c", code])("unet", "native")
    assert (outcome.verdict, outcome.facts) == (verdict, told)


def test_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(rung: str, attention: str) -> Outcome:
        bad = (rung, attention) == ("unet", "triton")
        return Outcome(
            rung, attention, "died" if bad else "ok", 4.0, {"trace": "line 1\nline 2"} if bad else {"max error": "1e-3"}
        )

    log = tmp_path / "trt-check.log"
    assert trt_check(Path("demo/small-things"), log, 1.0, run) == 0
    text = log.read_text()
    for part in ("python: 3.", "triton: ", "onnx: ", "gpu, driver: "):
        assert part in text
    assert "ok       the whole UNet, native (4 s): max error 1e-3" in text
    assert "died     the whole UNet, triton (4 s)\n" in text
    assert "Serve with --attention native" in text and text.endswith("--- unet, triton\nline 1\nline 2\n")
    assert str(tmp_path) not in text
    assert trt_check(Path("m"), log, 1.0, lambda rung, kind: Outcome(rung, kind, "failed")) == 1
    assert "paste it into an issue" in capsys.readouterr().out


def test_a_rung_with_the_bindings_alone_says_what_is_missing(tmp_path: Path) -> None:
    """The genuine module imports and is new enough; there is no GPU behind it."""
    code = "from engines.tensorrt.ladder.climb import _rung; _rung(['add_one', 'triton', 'demo/small-things'])"
    *_, last = run_with_bindings("11.4", stand_in(tmp_path), code).splitlines()
    assert "this machine has none" in json.loads(last.removeprefix(RESULT))["error"]


def doubled(case: Case) -> ModelProto:
    """The case with what ONNX Runtime can run in the place of plugins."""
    model = ModelProto()
    model.CopyFrom(case.model)
    for plugin in case.plugins:
        if plugin.name.startswith("add_one"):
            one = helper.make_node(
                "Constant", [], ["one"], value=helper.make_tensor("one", onnx.TensorProto.FLOAT16, [], [1])
            )
            nodes = [one, helper.make_node("Add", ["x", "one"], ["y"])]
            names = ["plugin_namespace", "plugin_version", "aot"]
            opsets = [helper.make_opsetid("", 23)]
            model.functions.append(
                helper.make_function(NAMESPACE, plugin.name, ["x"], ["y"], nodes, opsets, attributes=names)
            )
        else:
            model.functions.append(body(plugin.name, plugin.heads, plugin.width))  # type: ignore[attr-defined]
    return model


def run(case: Case) -> np.ndarray:
    path = (case.path or Path("x")).with_name("rung.onnx") if case.path else None
    data = doubled(case).SerializeToString()
    if path is not None:
        path.write_bytes(data)
    try:
        session = onnxruntime.InferenceSession(path or data, providers=["CPUExecutionProvider"])
        return np.asarray(session.run(None, case.inputs)[0], np.float64)
    finally:
        if path is not None:
            path.unlink()


def cases_of(artifact: Artifact) -> dict[str, Case]:
    found = {"add_one": cases.add_one(), "large": cases.attention("triton", large=True)}
    for kind in ("native", "triton"):
        found[f"attention {kind}"] = cases.attention(kind)
        found[f"block {kind}"] = cases.block(kind)
        found[f"unet {kind}"] = cases.unet(kind, artifact)
    return found


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    from export.artifact import export

    checkpoint = open_checkpoint(ROOT / "demo" / "small-things")
    return export(checkpoint, tmp_path_factory.mktemp("demo") / "model", say=lambda line: None)


def test_every_case_is_within_its_tolerance_on_a_cpu_and_tells_wrong_from_right(demo: Artifact) -> None:
    for name, case in cases_of(demo).items():
        error = np.abs(run(case) - case.expected).max()
        assert error <= case.tolerance, name
        # A result as far off as one of zeros is, or NaN, is out of it.
        assert np.abs(case.expected).max() > 20 * case.tolerance, name
        assert bool(case.plugins) == ("native" not in name)


class Memory(bytes):
    nbytes = property(len)


class FakeTrt(types.ModuleType):
    """As much of TensorRT as a rung touches; an engine is ONNX Runtime on the same graph."""

    def __init__(self, parses: bool = True, builds: bool = True) -> None:
        super().__init__("tensorrt")
        self.parses, self.builds = parses, builds
        one = types.SimpleNamespace
        self.Logger = type("Logger", (), {"WARNING": 2, "__init__": lambda self, level: None})
        self.NetworkDefinitionCreationFlag = one(STRONGLY_TYPED=1)
        self.ProfilingVerbosity = one(DETAILED=2)
        self.LayerInformationFormat = one(JSON=1)
        inspector = one(get_engine_information=lambda kind: '{"Layers": ["a", "b"]}')
        self.engine = one(create_engine_inspector=lambda: inspector)
        self.Builder = lambda logger: one(
            create_network=lambda flags: one(
                num_inputs=0,
                num_outputs=1,
                get_output=lambda i: one(name="out", dtype=one(name="HALF"), shape=(2, 256, 320)),
            ),
            create_builder_config=lambda: one(profiling_verbosity=None),
            build_serialized_network=lambda network, config: Memory(4096) if self.builds else None,
        )
        error = one(desc=lambda: "Plugin not found")
        self.OnnxParser = lambda network, logger: one(
            parse=lambda data, path: self.parses, num_errors=1, get_error=lambda i: error
        )


@pytest.mark.compiled
@pytest.mark.parametrize("wrong", [False, True])
def test_a_rung_builds_runs_and_compares(wrong: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    registered: list[str] = []
    decorate = lambda name: lambda function: registered.append(name)  # noqa: E731
    plugin = types.ModuleType("tensorrt.plugin")
    for name in ("register", "autotune", "aot_impl"):
        setattr(plugin, name, decorate)
    for name in ("TensorDesc", "AutoTuneCombination", "KernelLaunchParams", "SymExprs"):
        setattr(plugin, name, type(name, (), {}))
    plugin.op = types.SimpleNamespace()  # type: ignore[attr-defined]
    trt, case = FakeTrt(), cases.attention("triton")
    trt.plugin = plugin  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", plugin)

    class Engine:
        raw, workspace = trt.engine, 2048

        def __init__(self, module: Any, plan: bytes, ports: dict[str, Any]) -> None:
            assert module is trt and len(plan) == 4096 and [p["name"] for p in ports["outputs"]] == ["out"]

    class Plan:
        def __init__(self, engine: Engine) -> None:
            assert engine.raw is trt.engine

        def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            out = run(case)
            out[0, 0, 0] = np.nan if wrong else out[0, 0, 0]
            return {"out": out}

        def milliseconds(self) -> float:
            return 1.25

    monkeypatch.setattr("engines.tensorrt.serve.plan.Plan", Plan)
    monkeypatch.setattr("engines.tensorrt.serve.engine.TensorRtEngine", Engine)
    told = build_and_compare(trt, case, "sm_89")
    assert registered == [f"{NAMESPACE}::attention_8x40_fp16"] * 3
    assert told["milliseconds"] == 1.25 and told["layers"] == 2 and told["plan"] == "4 kB" and told["scratch"] == "2 kB"
    assert ("error" in told) == wrong, "NaN is no small error"
    assert build_and_compare(FakeTrt(parses=False), case, "sm_89") == {"error": "Plugin not found"}
    assert build_and_compare(FakeTrt(builds=False), case, "sm_89") == {"error": "TensorRT built no plan"}
