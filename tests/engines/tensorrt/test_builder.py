"""Plans of TensorRT for RTX, built here without a GPU: what goes in and out, the target, the same bytes twice.

A plan cannot be deserialised without a GPU, so ports are those of the parsed network that it is built from.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import tensorrt_rtx
from onnx import TensorProto

from engines.artifact.opened import Artifact
from engines.build.builder import Builder, Order
from engines.cache import disk
from engines.errors import BackendError
from engines.tensorrt import api
from engines.tensorrt.build.builder import TensorRtBuilder
from engines.tensorrt.build.header import HEADER, Header, read_header
from engines.tensorrt.notes import ProcessNotes
from engines.tensorrt.types.islands import METHOD, Study, study
from engines.tensorrt.types.typed import element_types
from export.artifact import export
from pipeline.checkpoint.opened import open_checkpoint
from tests.support.pairs import grid
from tests.support.plan_doubles import ports
from tests.support.sdxl import make_sdxl

TARGETS = ("sm_86", "sm_89", "sm_120")
NETWORKS = ("text_encoder", "unet", "vae_decoder")
SIZES = {"artifact": (24, 24), "sd1_artifact": (64, 64), "sdxl_artifact": (64, 64)}


def silent(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def notes() -> ProcessNotes:
    """One study a network for all targets."""
    return ProcessNotes()


def check_plan(facts: dict[str, Any], out: Path, target: str, *, shows_norms: bool = True) -> bytes:
    """The plan's hash, length and target, on its own bytes; returns its digest.

    `shows_norms`: the source of its norms' kernels is in it.
    """
    data = out.read_bytes()
    digest = hashlib.sha256(data)
    assert facts["plan"]["sha256"] == digest.hexdigest() and facts["plan"]["bytes"] == len(data)
    header = read_header(data[:HEADER])
    assert header is not None and header.targets == (target,) and header.length == len(data)
    assert header.version == facts["plan"]["header"]["version"]
    assert f"accelerators={{{target.replace('_', '')} }}".encode() in data, "the compiler's own note of it"
    assert facts["target"] == target and facts["strongly_typed"]
    assert facts["plan"]["inspection"].startswith("none: a plan of TensorRT for RTX cannot be opened without its GPU")
    # RTX writes the kernels that it makes into the plan as source, named by what they do: a mean, a square, a mean of
    # squares are taken of values cast to float32, as the graph's stash_type says. (An island's are in it already.)
    norms = {name.decode() for name in re.findall(rb"__global__ void __myl_([A-Za-z]*Mean[A-Za-z]*)", data)}
    assert bool(norms) == shows_norms and (facts["islands"] or all("CastMean" in name for name in norms)), norms
    return digest.digest()


@pytest.fixture(scope="module")
def sdxl_artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("sdxl")
    return export(open_checkpoint(make_sdxl(folder / "sdxl")), folder / "artifact", say=silent)


@pytest.fixture(scope="module")
def digests() -> dict[tuple[str, str], dict[str, bytes]]:
    """Of a model's network: each target's plan."""
    return {}


@pytest.mark.parametrize(
    ("model", "target", "network"),
    grid(list(SIZES), TARGETS, NETWORKS, always=[*itertools.product(["artifact"], TARGETS, NETWORKS)]),
)
def test_a_plan(
    model: str,
    target: str,
    network: str,
    request: pytest.FixtureRequest,
    notes: ProcessNotes,
    digests: dict[tuple[str, str], dict[str, bytes]],
    tmp_path: Path,
) -> None:
    """Of the tiny model, of every block, head and layer of SD 1.5's at a fifth of its width, and of SDXL's topology."""
    artifact: Artifact = request.getfixturevalue(model)
    if model != "artifact" and not request.config.getoption("exhaustive"):
        # The study of a network of this size takes longer than its plans, and test_islands.py is about studies.
        plain = {"islands": [], "errors": {"f32": 1e-3, "bf16": 1e-3}, "side": 64}
        notes.remember(plain, what="float16 ranges", artifact=artifact.digest, network=network, method=METHOD)
    builder = TensorRtBuilder(artifact, target, notes=notes)
    assert (builder.name, builder.target, builder.precision) == ("tensorrt_rtx", target, "f16")
    orders = builder.orders([2], [SIZES[model]])
    assert tuple(order.network for order in orders) == NETWORKS
    order = orders[NETWORKS.index(network)]
    facts = builder.build(order, tmp_path / "plan", silent)
    assert (facts["inputs"], facts["outputs"]) == ports(order, artifact)
    assert facts["precision"] == "f16" and facts["islands"] == []
    assert 0 < facts["emulated_error"] < 1e-2
    assert facts["unproven"] == ["islands chosen on a CPU; no card has run this plan"]
    others = digests.setdefault((model, network), {})
    others[target] = check_plan(
        # RTX writes none into the plan of SDXL's small decoder: nothing tells from outside how its norms are taken.
        facts,
        tmp_path / "plan",
        target,
        shows_norms=(model, network) != ("sdxl_artifact", "vae_decoder"),
    )
    assert len(set(others.values())) == len(others), "another target, another plan"


def test_a_plan_is_the_same_bytes_twice(artifact: Artifact, notes: ProcessNotes, tmp_path: Path) -> None:
    """Nothing of RTX's is timed on a device: with equal versions a plan can be built again and compared."""
    builder = TensorRtBuilder(artifact, "sm_89", notes=notes)
    order = builder.orders([1], [(24, 24)])[1]
    for name in "ab":
        builder.build(order, tmp_path / name, silent)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_every_class_that_rtx_knows(artifact: Artifact, notes: ProcessNotes, tmp_path: Path) -> None:
    for target in ("sm_75", "sm_80", "sm_121"):
        builder = TensorRtBuilder(artifact, target, notes=notes)
        order = builder.orders([1], [(24, 24)])[-1]
        check_plan(builder.build(order, tmp_path / "plan", silent), tmp_path / "plan", target)


@pytest.mark.parametrize("target", ["sm_75", "sm_89"])
def test_islands_in_a_plan(target: str, artifact: Artifact, tmp_path: Path) -> None:
    """sm_75 has no bfloat16: there islands are float32, also the attention, which has no fused kernel in it."""
    found = study(artifact, "unet", ProcessNotes())
    model = onnx.load(artifact.graph("unet"), load_external_data=False)
    islands = [next(n for n in model.graph.node if n.op_type == op) for op in ("GroupNormalization", "Attention")]
    notes = ProcessNotes()
    told = [
        {"output": n.output[0], "operator": n.op_type, "weight": "", "largest": 1e5, "where": "output"} for n in islands
    ]
    # As a study would have found them; bfloat16 at no cost.
    made = {"islands": told, "errors": {"f32": 1e-3, "bf16": 1e-3}, "side": found.side}
    notes.remember(made, what="float16 ranges", artifact=artifact.digest, network="unet", method=METHOD)
    builder = TensorRtBuilder(artifact, target, notes=notes)
    order = builder.orders([2], [(24, 24)])[1]
    graph, kind = builder.graph(order, study(artifact, "unet", notes))
    assert kind == {"sm_75": "f32", "sm_89": "bf16"}[target]
    assert (TensorProto.BFLOAT16 in element_types(graph.graph).values()) == (target == "sm_89")
    facts = builder.build(order, tmp_path / "plan", silent)
    assert [(i["operator"], i["type"], i["largest"]) for i in facts["islands"]] == [
        (node.op_type, kind, 1e5) for node in islands
    ]
    check_plan(facts, tmp_path / "plan", target)


@pytest.mark.parametrize("precision", ["bf16", "f32"])
def test_whole_precisions(precision: str, artifact: Artifact, tmp_path: Path) -> None:
    builder = TensorRtBuilder(artifact, "sm_86", precision)
    order = builder.orders([1], [(24, 24)])[0]
    facts = builder.build(order, tmp_path / "plan", silent)
    assert (facts["precision"], facts["emulated_error"]) == (precision, None)
    assert (facts["inputs"], facts["outputs"]) == ports(order, artifact)


def test_identity_is_all_that_the_bytes_depend_on(artifact: Artifact) -> None:
    def told(target: str = "sm_89", precision: str = "auto", rows: int = 1) -> dict[str, Any]:
        builder: Builder = TensorRtBuilder(artifact, target, precision)
        return builder.identity(builder.orders([rows], [(24, 24)])[1])

    assert told() == told() == told(precision="f16")
    others = [told("sm_86"), told(precision="bf16"), told(rows=2)]
    assert all(other != told() for other in others)
    assert {"artifact", "version", "onnx", "typing", "kernels"} <= told().keys()


@pytest.mark.parametrize(
    ("target", "precision", "told"),
    [
        ("sm_90", "auto", "'sm_90': TensorRT for RTX .* builds for sm_75, sm_80, .*, sm_121; use backend"),
        ("ada", "auto", "'ada': TensorRT for RTX .* builds for sm_75, sm_80, sm_86, sm_89, sm_120, sm_121$"),
        ("sm_75", "bf16", "sm_75 has no bfloat16"),
        ("sm_89", "int8", "'int8' is unknown; tensorrt_rtx does auto, f16, bf16, f32"),
    ],
)
def test_refused_in_words(target: str, precision: str, told: str, artifact: Artifact) -> None:
    with pytest.raises(BackendError, match=told):
        TensorRtBuilder(artifact, target, precision)


def test_a_target_is_needed_where_there_is_no_gpu(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engines.tensorrt.api.present_target", lambda: None)
    with pytest.raises(BackendError, match="needs a target where there is no GPU: one of sm_75, .*sm_121"):
        TensorRtBuilder(artifact, None)
    monkeypatch.setattr("engines.tensorrt.api.present_target", lambda: "sm_89")
    assert TensorRtBuilder(artifact, None).target == "sm_89"


@pytest.mark.parametrize(
    ("shapes", "told"),
    [
        ({"latents": (1, 3, 12)}, "latents has 4 dimensions"),
        ({"sample": (1, 3, 12, 12)}, "the graph's inputs are .'latents'."),
        ({"latents": (1, 5, 12, 12)}, "dimension 1 of latents is 3, not 5"),
    ],
)
def test_wrong_shapes(
    shapes: dict[str, Any], told: str, artifact: Artifact, notes: ProcessNotes, tmp_path: Path
) -> None:
    with pytest.raises(BackendError, match=f"tensorrt_rtx cannot build vae_decoder: .*{told}"):
        TensorRtBuilder(artifact, "sm_89", notes=notes).build(Order("vae_decoder", shapes), tmp_path / "plan", silent)


def test_what_tensorrt_says_is_one_sentence(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator that its parser does not know."""
    builder = TensorRtBuilder(artifact, "sm_89", "f32")
    order = builder.orders([1], [(24, 24)])[-1]
    right: Callable[..., Any] = builder.graph

    def wrong(order: Order, found: Study | None) -> Any:
        model, kind = right(order, found)
        next(node for node in model.graph.node if node.op_type == "Conv").op_type = "Unheard"
        return model, kind

    monkeypatch.setattr(builder, "graph", wrong)
    with pytest.raises(BackendError) as caught:
        builder.build(order, tmp_path / "plan", silent)
    told = str(caught.value)
    assert told.startswith("tensorrt_rtx cannot build vae_decoder (latents 1x3x12x12) for sm_89: ")
    assert "Unheard" in told and "\n" not in told


def test_a_full_disk_is_told(artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan is written from inside TensorRT, through which no exception passes."""
    builder = TensorRtBuilder(artifact, "sm_89", "f32")
    order = builder.orders([1], [(24, 24)])[-1]
    out = tmp_path / "plan"

    def full(doing: str, path: Path) -> None:
        if (doing, path) == ("write", out):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk, "before", full)
    with pytest.raises(disk.DiskError, match=f"cannot write {out} .*No space left on device"):
        builder.build(order, out, silent)


def test_full_tensorrt_s_plan_is_inspected_where_it_was_built(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The branch of full TensorRT, as far as RTX goes with it: its configuration, and what is said of the plan."""
    configs: list[Any] = []

    def configure(trt: Any, config: Any, target: str, rtx: bool, timing: Path | None) -> None:
        assert not rtx
        api.configure(trt, config, target, True, timing)
        configs.append(config)

    class Inspector:
        def get_engine_information(self, form: Any) -> str:
            assert form == tensorrt_rtx.LayerInformationFormat.JSON
            return '{"Layers": [{"Name": "conv_in"}]}'

    class Plan:
        device_memory_size_v2 = 4096

        def create_engine_inspector(self) -> Inspector:
            return Inspector()

    class Runtime:
        def __init__(self, log: Any) -> None:
            pass

        def deserialize_cuda_engine(self, plan: bytes) -> Plan | None:
            return Plan() if plan == (tmp_path / "plan").read_bytes() else None

    monkeypatch.setattr("engines.tensorrt.build.builder.configure", configure)
    monkeypatch.setattr("engines.tensorrt.build.builder.timed", lambda config: b"tactics")
    builder = TensorRtBuilder(artifact, "sm_89", "f32")
    builder._rtx = False
    monkeypatch.setattr(builder, "_trt", Stub(tensorrt_rtx, Runtime))
    order = builder.orders([1], [(24, 24)])[-1]
    plan = builder.build(order, tmp_path / "plan", silent)["plan"]
    assert (plan["inspection"], plan["workspace"]) == ("inspection.json", 4096)
    assert json.loads((tmp_path / "inspection.json").read_text()) == {"Layers": [{"Name": "conv_in"}]}
    (config,) = configs
    assert config.profiling_verbosity == tensorrt_rtx.ProfilingVerbosity.DETAILED
    assert not config.get_flag(tensorrt_rtx.BuilderFlag.REFIT)


class Stub:
    """A module with another runtime: RTX's cannot open a plan without its GPU."""

    def __init__(self, module: Any, runtime: Any) -> None:
        self._module, self.Runtime = module, runtime

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def test_headers() -> None:
    good = b"vtrt\0\0\0\0" + (2).to_bytes(8, "little") + (4013516).to_bytes(8, "little") + bytes([1, 7, 1, 116])
    good += b"vtrt" + (8).to_bytes(4, "little")
    good = good.ljust(HEADER, b"\0")
    assert read_header(good) == Header("1.7.1.116", 4013516, ("sm_89",))
    assert read_header(good[:32] + b"\x05" + good[33:]) == Header("1.7.1.116", 4013516, ("sm_75", "sm_86"))
    for bad in (good[:63], b"ftrt" + good[4:], good[:8] + b"\x03" + good[9:], good[:33] + b"\1" + good[34:], b""):
        assert read_header(bad) is None
