"""Checkpoints whose activations or attention logits leave float16's range get islands there, and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from safetensors.torch import load_file, save_file

from engines.artifact.opened import GRAPHS, Artifact
from engines.errors import BackendError
from engines.tensorrt.notes import ProcessNotes
from engines.tensorrt.types.emulation import emulate, largest_error
from engines.tensorrt.types.islands import HEADROOM, METHOD, Study, find, study
from engines.tensorrt.types.ranges import measure
from engines.tensorrt.types.samples import samples
from engines.tensorrt.types.typed import element_types, typed
from tests.support.checkpoints import make_checkpoint

CONV = "decoder.up_blocks.0.resnets.0.conv1"
ATTENTION = "mid_block.attentions.0.transformer_blocks.0.attn1"


def scaled(folder: Path, part: str, factors: dict[str, float]) -> Path:
    """A checkpoint with some weights of one part multiplied; all of them stay within float16."""
    made = make_checkpoint(folder)
    path = made / part / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    for name, factor in factors.items():
        tensors[name] = tensors[name] * factor
        assert tensors[name].isfinite().all() and tensors[name].abs().max() > 1e-3, name
    save_file(tensors, path, metadata={"format": "pt"})
    return made


@pytest.fixture(scope="module")
def make(artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Artifact]:
    """Artifacts with other weights: the graphs only point into the files, so they are those of `artifact`."""

    def made(name: str, part: str, factors: dict[str, float]) -> Artifact:
        folder = scaled(tmp_path_factory.mktemp(name) / name, part, factors)
        for path in GRAPHS.values():
            (folder / path).write_bytes((artifact.folder / path).read_bytes())
        # Not through the manifest: nothing here is served.
        return Artifact(folder, f"{name} of a test", artifact.spec)

    return made


def errors(artifact: Artifact, network: str, islands: dict[str, str]) -> float:
    path, feeds = artifact.graph(network), samples(artifact, network)
    model = onnx.load(path, load_external_data=False)
    return largest_error(
        emulate(typed(model, "f16", islands), path.parent, feeds), measure(model, path.parent, feeds).outputs
    )


def test_a_plain_checkpoint_needs_none(artifact: Artifact) -> None:
    for network in ("text_encoder", "unet", "vae_decoder", "vae_encoder"):
        found = study(artifact, network, ProcessNotes())
        assert found.islands == [] and 0 < found.errors["f32"] < 1e-2, network


def test_a_vae_that_overflows(make: Callable[..., Artifact]) -> None:
    """A convolution gives about 1e5 and the normalisation after it takes that away: those two, in order."""
    wild = make("overflowing", "vae", {f"{CONV}.weight": 1e5, f"{CONV}.bias": 1.0})
    found = study(wild, "vae_decoder", ProcessNotes())
    assert [(island.operator, island.where) for island in found.islands] == [
        ("Conv", "output"),
        ("GroupNormalization", "input"),
    ]
    assert found.islands[0].weight == f"{CONV}.weight"
    assert found.islands[1].weight == CONV.replace("conv1", "norm2") + ".weight"
    assert found.islands[0].largest > 65504

    assert math.isinf(errors(wild, "vae_decoder", {})), "without islands it is not finite"
    for kind, tolerance in (("f32", 1e-2), ("bf16", 5e-2)):  # as the plain one; 8 bits of mantissa in two layers
        assert errors(wild, "vae_decoder", {island.output: kind for island in found.islands}) < tolerance, kind
    assert 0 < found.errors["f32"] <= found.errors["bf16"] < 5e-2


def test_attention_that_overflows(make: Callable[..., Artifact]) -> None:
    """Queries and keys of some hundreds fit; their products do not, and lie in no tensor of the graph."""
    wild = make("attentive", "unet", {f"{ATTENTION}.to_q.weight": 600.0, f"{ATTENTION}.to_k.weight": 600.0})
    found = study(wild, "unet", ProcessNotes())
    assert [(island.operator, island.where) for island in found.islands] == [("Attention", "logits")]
    assert found.islands[0].largest > 65504
    assert math.isinf(errors(wild, "unet", {})), "inf - inf in the softmax"
    assert errors(wild, "unet", {found.islands[0].output: "f32"}) < math.inf


def test_headroom_counts(artifact: Artifact) -> None:
    """What is within eight times of the limit is an island too; a weight is what it is and needs no room."""
    path, feeds = artifact.graph("vae_decoder"), samples(artifact, "vae_decoder")
    model = onnx.load(path, load_external_data=False)
    ranges = measure(model, path.parent, feeds)
    name = next(node.output[0] for node in model.graph.node if node.op_type == "Conv")
    for largest, islands in ((65504 / HEADROOM * 0.99, False), (65504 / HEADROOM * 1.01, True)):
        ranges.tensors[name] = largest
        assert bool(find(model, ranges)) == islands
    assert not find(model, ranges, headroom=1.0)


def test_float32_weights_are_measured(tmp_path: Path) -> None:
    """A weight of 1e5 in a float32 checkpoint fits no float16, small as what it makes may be."""
    weight = np.full((4, 4), 0.5, np.float32)
    for largest, found in ((65504.0, []), (1e5, ["weight"])):
        weight[1, 2] = largest
        (tmp_path / "weights").write_bytes(weight.tobytes())
        model = onnx.parser.parse_model("""
            <ir_version: 10, opset_import: ["": 23]> a (float[1, 4] x) => (float[1, 4] y) { y = MatMul(x, w) }
        """)
        tensor = onnx.TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4, 4])
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "weights"), ("offset", 0), ("length", 64)):
            tensor.external_data.add(key=key, value=str(value))
        model.graph.initializer.append(tensor)
        feed = {"x": np.full((1, 4), 1e-6, np.float32)}
        islands = find(model, measure(model, tmp_path, [feed]))
        assert [island.where for island in islands] == found
        assert all((island.weight, island.largest) == ("w", 1e5) for island in islands)


def test_bfloat16_islands_must_cost_next_to_nothing() -> None:
    assert Study([], {"f32": 1e-3, "bf16": 1.9e-3}, 64).island_type(bf16=True) == "bf16"
    assert Study([], {"f32": 1e-3, "bf16": 2.1e-3}, 64).island_type(bf16=True) == "f32"
    assert Study([], {"f32": 1e-3, "bf16": 1e-3}, 64).island_type(bf16=False) == "f32"


def test_a_study_is_made_once(artifact: Artifact) -> None:
    notes = ProcessNotes()
    first = study(artifact, "text_encoder", notes)
    what = {"what": "float16 ranges", "artifact": artifact.digest, "network": "text_encoder", "method": METHOD}
    known = notes.recall(**what)
    assert known["errors"] == first.errors
    known["side"] = 1
    notes.remember(known, **what)
    assert study(artifact, "text_encoder", notes).side == 1, "from the notes"
    assert study(artifact, "text_encoder", ProcessNotes()) == first


def test_what_no_island_mends_is_refused(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engines.tensorrt.types.islands.largest_error", lambda got, wanted: math.inf)
    notes = ProcessNotes()
    with pytest.raises(BackendError, match="text_encoder of .* is not finite in float16, even with 0 islands; build"):
        study(artifact, "text_encoder", notes)
    monkeypatch.undo()
    assert study(artifact, "text_encoder", notes).errors["f32"] < 1, "nothing was noted"


def test_the_typed_graph_has_the_island_in_its_type(make: Callable[..., Artifact]) -> None:
    wild = make("typed", "vae", {f"{CONV}.weight": 1e5})
    found = study(wild, "vae_decoder", ProcessNotes())
    model = onnx.load(wild.graph("vae_decoder"), load_external_data=False)
    for kind, code in (("f32", TensorProto.FLOAT), ("bf16", TensorProto.BFLOAT16)):
        graph = typed(model, "f16", {island.output: kind for island in found.islands})
        kinds = element_types(graph.graph)
        assert [kinds[island.output] for island in found.islands] == [code, code]
        assert (TensorProto.BFLOAT16 in kinds.values()) == (kind == "bf16")
