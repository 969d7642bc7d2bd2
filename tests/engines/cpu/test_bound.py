"""Weights bound in memory: the bits of a graph read from disk, whatever the files look like, and little memory."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import openvino as ov
import pytest
import torch
from safetensors.numpy import save_file

import graphs
from engines.cpu.bound import bound
from engines.cpu.core import core, has_bf16
from engines.graphs import graph_of
from export.committed import published
from export.layout import lay_out
from export.point import point
from graphs import wire
from pipeline.checkpoint.opened import Checkpoint, open_checkpoint
from pipeline.spec_json import spec_from_json
from tests.support.checkpoints import make_checkpoint
from tests.support.original import make_folder, write_original

ROOT = Path(__file__).parents[3]
SHAPES: dict[str, dict[str, list[int]]] = {  # of the first kind of tests/support/checkpoints.py
    "text_encoder": {"ids": [1, 16]},
    "unet": {"sample": [1, 3, 12, 12], "timestep": [1], "context": [1, 16, 48]},
    "vae_decoder": {"latents": [1, 3, 12, 12]},
    "vae_encoder": {"picture": [1, 3, 24, 24]},
}
LEFT_OUT = {(torch.bfloat16, "f32"), (torch.float32, "bf16")}
PRECISIONS = ["f32"] + ["bf16"] * has_bf16()


def outputs(model: ov.Model, shapes: dict[str, list[int]] | None, precision: str) -> list[np.ndarray]:
    """Compile for `shapes`, or for any where there are none, and run once."""
    if shapes:
        model.reshape(shapes)
    engine = core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": precision})
    chance = np.random.default_rng(3)
    feeds = {}
    for name, shape in (shapes or SHAPES["unet"]).items():
        values = chance.integers(0, 200, shape) if name == "ids" else chance.standard_normal(shape, dtype=np.float32)
        feeds[name] = values
    return [np.array(value) for value in engine(feeds).values()]


def from_disk(checkpoint: Checkpoint, network: str, folder: Path) -> ov.Model:
    """The graph with its weights as external data, as an artifact has it, read by path."""
    graph = onnx.load_from_string(graph_of(network, checkpoint.spec))
    place = folder / graphs.part_of(network)
    if not place.exists():
        lay_out(checkpoint, folder)
    stored = open_checkpoint(folder).weights.tensors(graphs.part_of(network))
    point(graph, dict(stored), place)
    onnx.save(graph, place / f"{network}.onnx")
    return core().read_model(place / f"{network}.onnx")


@pytest.mark.parametrize(
    ("dtype", "precision"),
    [
        # Each type of weight, each precision, and half weights in both: they take another way in each.
        pytest.param(dtype, precision, marks=[pytest.mark.exhaustive] if (dtype, precision) in LEFT_OUT else [])
        for dtype in (torch.float16, torch.bfloat16, torch.float32)
        for precision in PRECISIONS
    ],
)
def test_bound_is_read_from_disk_bit_for_bit(tmp_path: Path, dtype: torch.dtype, precision: str) -> None:
    checkpoint = open_checkpoint(make_checkpoint(tmp_path / "tiny", dtype=dtype))
    for network, shapes in SHAPES.items():
        disk = from_disk(checkpoint, network, tmp_path / "laid")
        wanted = outputs(disk, shapes, precision)
        got = outputs(bound(core(), checkpoint, network), shapes, precision)
        assert wanted[0].std() > 1e-3
        for a, b in zip(got, wanted, strict=True):
            if dtype == torch.float32 or precision == "bf16":
                assert np.array_equal(a, b), (network, np.abs(a - b).max())
            else:  # marked weights stay half and are converted at each use: another order of the same sums
                assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max(), network


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_a_single_file_is_its_folder_bit_for_bit(tmp_path: Path, kind: str) -> None:
    folder = make_folder(tmp_path / "folder", kind, levels=2)
    file = write_original(folder, kind, tmp_path / "model.safetensors", levels=2)
    one, other = open_checkpoint(folder), open_checkpoint(file, "epsilon")
    for network in ("text_encoder", "vae_decoder"):
        shapes = {"ids": [1, 77]} if network == "text_encoder" else {"latents": [1, 4, 8, 8]}
        a, b = (outputs(bound(core(), each, network), shapes, "f32") for each in (one, other))
        assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True)) and a[0].std() > 1e-3, network


def test_any_size_from_disk_too(checkpoint: Checkpoint, tmp_path: Path) -> None:
    disk = from_disk(checkpoint, "unet", tmp_path / "laid")
    free = {"sample": [1, 3, -1, -1], "timestep": [1], "context": [1, -1, 48]}
    memory = bound(core(), checkpoint, "unet")
    for model in (disk, memory):
        model.reshape(free)
    a, b = outputs(memory, None, PRECISIONS[-1]), outputs(disk, None, PRECISIONS[-1])
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_letting_go_while_it_compiles_changes_no_bit(checkpoint: Checkpoint) -> None:
    wanted = outputs(bound(core(), checkpoint, "unet"), SHAPES["unet"], "f32")
    with checkpoint.weights.letting_go():
        model = bound(core(), checkpoint, "unet")
        for _ in range(3):
            checkpoint.weights._let_go()
        got = outputs(model, SHAPES["unet"], "f32")
    assert all(np.array_equal(a, b) for a, b in zip(got, wanted, strict=True))


_COMPILE = """
import json, sys
from pathlib import Path
import openvino as ov
from openvino import opset13
from engines.cpu.bound import bound
from pipeline.checkpoint.opened import Checkpoint
from pipeline.checkpoint.weights import Weights, named_tensors
from pipeline.source import Folder
from pipeline.spec_json import spec_from_json

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) << 10

path, spec = Path(sys.argv[1]), spec_from_json(json.loads(sys.argv[2]))
config = {"INFERENCE_PRECISION_HINT": sys.argv[3]}
weights = Weights({"vae": named_tensors("vae", [path])}, {"vae": path})
checkpoint = Checkpoint(path, Folder(path.parent), spec, weights)
core, x = ov.Core(), opset13.parameter([1])
core.compile_model(ov.Model([opset13.relu(x)], [x], "warm"), "CPU", config)  # loads the plugin
before = anonymous()
engine = core.compile_model(bound(core, checkpoint, "vae_decoder"), "CPU", config)
print(anonymous() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_half_weights_are_packed_once(tmp_path: Path, sd_vae: str) -> None:
    """Fails where OpenVINO no longer heeds the mark of bound.py: float16 weights then become float32 copies too.

    The decoder of Stable Diffusion's VAE, 49 million weights; packed they take as much as in the file.
    """
    spec = spec_from_json(json.loads(sd_vae))
    shapes = wire.weights(graph_of("vae_decoder", spec))
    chance = np.random.default_rng(0)
    path = tmp_path / "vae.safetensors"
    values = {name: chance.standard_normal(shape, np.float32).astype(np.float16) for name, shape in shapes.items()}
    save_file(values, path)
    grown = int(child(_COMPILE, str(path), sd_vae, PRECISIONS[-1]))
    packed = sum(int(np.prod(shape)) for shape in shapes.values()) * (2 if PRECISIONS[-1] == "bf16" else 4)
    assert grown < 1.3 * packed, f"{grown >> 20} MB for {packed >> 20}"


@pytest.fixture
def sd_vae() -> str:
    """A spec with Stable Diffusion's own VAE, as JSON."""
    return json.dumps(next(spec for name, spec in published().items() if "1.5" in name or "1-5" in name).to_json())


_PROTECTED = """
import ctypes, sys
from pathlib import Path
import numpy as np
from engines.cpu.openvino import OpenVinoBackend
from pipeline.checkpoint.opened import open_checkpoint
backend = OpenVinoBackend(open_checkpoint(Path(sys.argv[1])), "f32")
ids = np.arange(backend.spec.text.tokens)
wanted = backend.encode(ids)
libc, protected = ctypes.CDLL(None, use_errno=True), 0
for line in Path("/proc/self/maps").read_text().splitlines():
    if line.endswith(".safetensors") and "text_encoder" in line:
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        assert libc.mprotect(ctypes.c_void_p(start), ctypes.c_size_t(end - start), 0) == 0
        protected += 1
assert protected and np.array_equal(backend.encode(ids), wanted)
print(protected)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mappings are read from /proc")
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_text_encoder_needs_its_file_no_more(tmp_path: Path, dtype: torch.dtype) -> None:
    assert int(child(_PROTECTED, str(make_checkpoint(tmp_path / "model", dtype=dtype)))) >= 1


def child(code: str, *arguments: str) -> str:
    """Run Python code in a process of its own; what it printed."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stderr)
    return done.stdout


@pytest.mark.parametrize("kind", ["float64", "odd offsets"])
def test_a_copy_of_a_weight_outlives_its_binding(tmp_path: Path, kind: str) -> None:
    """What is no view of the file (F64, or of an old writer's odd header) must not be shared with the engine."""
    plain = make_checkpoint(tmp_path / "plain", dtype=torch.float32)
    other = make_checkpoint(tmp_path / "other", dtype=torch.float64 if kind == "float64" else torch.float32)
    if kind != "float64":
        for path in other.rglob("*.safetensors"):
            data = path.read_bytes()
            size = int.from_bytes(data[:8], "little")
            path.write_bytes((size + 1).to_bytes(8, "little") + data[8 : 8 + size] + b" " + data[8 + size :])
    results = []
    for checkpoint in (open_checkpoint(plain), open_checkpoint(other)):
        model = bound(core(), checkpoint, "unet")
        gc.collect()
        taken = [np.full(1 << 18, 7.0, np.float32) for _ in range(64)]  # whoever frees too early finds sevens
        results.append(outputs(model, SHAPES["unet"], "f32"))
        del taken
    assert all(np.array_equal(a, b) for a, b in zip(*results, strict=True))
