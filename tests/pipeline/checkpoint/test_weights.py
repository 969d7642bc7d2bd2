"""Weights: strict views of the mapped files under the networks' names, wherever these lie; nothing is written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from model.weights import check_weights
from pipeline.checkpoint.mapping import Mapping as MappedFile
from pipeline.checkpoint.opened import open_checkpoint
from pipeline.checkpoint.weights import Weights, named_tensors
from pipeline.errors import CheckpointError
from tests.support.checkpoints import make_checkpoint
from tests.support.layouts import PATHS, UNET, hub_cache, shard, state, write_tensors
from tests.support.original import make_folder, write_original

ROOT = Path(__file__).parents[3]
FOUR = np.arange(4, dtype=np.float32)


def weights_of(path: Path) -> Weights:
    return Weights({"unet": named_tensors("unet", [path])}, {"unet": path})


def mapped(weights: Weights, path: Path) -> NDArray[np.generic]:
    return np.frombuffer(weights._files[path]._map, np.uint8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_arrays_are_views_of_the_file(tmp_path: Path, dtype: torch.dtype) -> None:
    checkpoint = open_checkpoint(make_checkpoint(tmp_path, dtype=dtype))
    for part, path in PATHS.items():
        whole, stored = mapped(checkpoint.weights, tmp_path / path), load_file(tmp_path / path)
        for name, tensor in checkpoint.weights.tensors(part).items():
            array = checkpoint.weights.array(part, name, tensor.shape)
            assert array.shape == tensor.shape and np.shares_memory(array, whole), name
            assert checkpoint.weights.is_bfloat16(part, name) == (dtype == torch.bfloat16)
            wanted = stored[name].view(torch.uint16) if dtype == torch.bfloat16 else stored[name]
            assert np.array_equal(array, wanted.numpy()), name
        assert checkpoint.weights.bytes(part) == sum(tensor.nbytes for tensor in stored.values())
    assert checkpoint.weights.files == sorted(tmp_path / path for path in PATHS.values())


def test_float64_is_converted(tmp_path: Path) -> None:
    numbers = np.array([1 / 3, -2.5, 1e30, 0])
    write_tensors(path := tmp_path / "m.safetensors", {"a": ("F64", [2, 2], numbers.tobytes())})
    array = weights_of(path).array("unet", "a", (2, 2))
    assert array.dtype == np.float32 and np.array_equal(array.ravel(), numbers.astype(np.float32))


@pytest.mark.parametrize(("dtype", "kind"), [("F32", np.float32), ("F16", np.float16), ("BF16", np.uint16)])
@pytest.mark.parametrize("pad", range(4))
def test_what_lies_at_an_odd_offset_is_copied(tmp_path: Path, dtype: str, kind: type, pad: int) -> None:
    """The format does not align: a header of any length, a tensor behind an odd number of bytes."""
    numbers = np.arange(1, 5).astype(kind)
    write_tensors(path := tmp_path / "m.safetensors", {"a": (dtype, [4], numbers.tobytes())}, pad)
    weights = weights_of(path)
    array, offset = weights.array("unet", "a", (4,)), weights.tensors("unet")["a"].offset
    assert np.array_equal(array, numbers) and array.flags.aligned
    assert np.shares_memory(array, mapped(weights, path)) == (offset % array.itemsize == 0)


def test_an_old_vae_is_a_view_of_the_networks_shape(tmp_path: Path) -> None:
    write_tensors(path := tmp_path / "m.safetensors", {"a": ("F32", [2, 2, 1, 1], FOUR.tobytes())})
    weights = Weights({"vae": named_tensors("vae", [path])}, {"vae": path})
    weights.check("vae", {"a": (2, 2)})
    array = weights.array("vae", "a", (2, 2))
    assert np.array_equal(array, FOUR.reshape(2, 2)) and np.shares_memory(array, mapped(weights, path))


@pytest.mark.parametrize(
    ("dtype", "shape", "words"),
    [
        ("F32", [4], "of 1 tensors, 1 unknown (b)"),
        ("F32", [2, 2], "1 unknown (b); 1 of another shape (a has shape [2, 2], its config says [4])"),
        ("F32", [4, 1, 1, 1], "a has shape [4, 1, 1, 1], its config says [4]"),
        ("I32", [4], "a is stored as I32; latentd takes F64, F32, F16, BF16"),
        ("F8_E4M3", [16], "a is stored as F8_E4M3"),
    ],
)
def test_headers_alone_tell_what_does_not_fit(
    tmp_path: Path, dtype: str, shape: list[int], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for reading in ("array", "pieces"):
        monkeypatch.setattr(MappedFile, reading, lambda *_: pytest.fail("weights were read"))
    both = {"a": (dtype, shape, FOUR.tobytes()), "b": ("F32", [4], FOUR.tobytes())}
    write_tensors(path := tmp_path / "m.safetensors", both)
    with pytest.raises(CheckpointError) as caught:
        weights_of(path).check("unet", {"a": (4,)})
    assert str(path) in str(caught.value) and words in str(caught.value)


def test_a_part_that_is_missing_one(tmp_path: Path) -> None:
    write_tensors(path := tmp_path / "m.safetensors", {"a": ("F32", [4], FOUR.tobytes())})
    with pytest.raises(CheckpointError, match=r"does not fit its config: of 2 tensors, 1 missing \(b\)"):
        weights_of(path).check("unet", {"a": (4,), "b": (1,)})


def test_one_tensor_in_two_files(tmp_path: Path) -> None:
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for path in paths:
        write_tensors(path, {"w": ("F32", [4], FOUR.tobytes())})
    with pytest.raises(CheckpointError, match="a.safetensors and .*b.safetensors: the tensor w is there twice"):
        named_tensors("unet", paths)


@pytest.mark.parametrize("left", [1, 15, 16])
def test_a_file_that_shrinks_between_its_header_and_its_bytes(tmp_path: Path, left: int) -> None:
    write_tensors(path := tmp_path / "m.safetensors", {"w": ("F32", [4], FOUR.tobytes())})
    tensors = named_tensors("unet", [path])
    os.truncate(path, path.stat().st_size - left)
    with pytest.raises(CheckpointError, match="became shorter while it was read"):
        Weights({"unet": tensors}, {"unet": path})


def test_whatever_takes_the_files_name_later_is_not_read(tmp_path: Path) -> None:
    """Digest and arrays are of the files that the headers were read from, also while they are downloaded anew."""
    checkpoint = open_checkpoint(make_checkpoint(tmp_path / "old"))
    digest = open_checkpoint(tmp_path / "old").weights.digest()
    before = checkpoint.weights.array("unet", "conv_in.bias", (32,)).copy()
    new = make_checkpoint(tmp_path / "new", seed=7)
    (new / UNET).replace(tmp_path / "old" / UNET)
    assert np.array_equal(checkpoint.weights.array("unet", "conv_in.bias", (32,)), before)
    assert checkpoint.weights.digest() == digest != open_checkpoint(tmp_path / "old").weights.digest()


def linked_parts(folder: Path, place: Path) -> Path:
    """A folder whose parts are links to folders elsewhere, as who shares a text encoder between models has it."""
    place.mkdir()
    for path in folder.iterdir():
        (place / path.name).symlink_to(path)
    return place


def hub(folder: Path, place: Path) -> Path:
    return hub_cache(folder, place / "models--some--one")


def read_only(folder: Path, place: Path) -> Path:
    for path in (*folder.rglob("*"), folder):
        path.chmod(0o555 if path.is_dir() else 0o444)
    place.symlink_to(folder)
    return place


@pytest.mark.parametrize("lay", [linked_parts, hub, read_only])
def test_wherever_the_files_lie_nothing_is_written(tmp_path: Path, lay) -> None:
    folder = make_checkpoint(tmp_path / "tiny")
    wanted = open_checkpoint(folder).weights.digest()
    model = lay(folder, tmp_path / "other")
    before = state(tmp_path)
    checkpoint = open_checkpoint(model)
    check_weights(checkpoint.spec, checkpoint.weights)
    assert checkpoint.weights.digest() == wanted
    assert checkpoint.weights.array("unet", "conv_in.bias", (32,)).any()
    assert len(checkpoint.small_files()) >= 9
    assert state(tmp_path) == before
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)  # so that pytest can remove it


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_folder_shards_and_single_file_are_one(tmp_path: Path, dtype: torch.dtype) -> None:
    """Also where a single file keeps a matrix as a 1x1 convolution; and one bit makes another model."""
    folder = make_folder(tmp_path / "folder", "sd1", levels=2, dtype=dtype)
    file = write_original(folder, "sd1", tmp_path / "model.safetensors", levels=2)
    one = open_checkpoint(folder).weights.digest()
    assert open_checkpoint(file).weights.digest() == one
    for part in PATHS:
        shard(folder, part)
    assert open_checkpoint(folder).weights.digest() == one
    data = bytearray(file.read_bytes())
    data[open_checkpoint(file).weights.tensors("vae")["encoder.conv_in.bias"].offset] ^= 1
    file.write_bytes(data)
    assert open_checkpoint(file).weights.digest() != one


def test_names_types_and_shapes_are_in_the_digest(tmp_path: Path) -> None:
    kinds = {"a": ("F32", [4]), "b": ("F32", [4]), "c": ("F32", [2, 2]), "d": ("F16", [8]), "e": ("BF16", [8])}
    digests = []
    for number, (name, (dtype, shape)) in enumerate(kinds.items()):
        write_tensors(
            path := tmp_path / f"{number}.safetensors",
            {name[:1] if number < 2 else "a": (dtype, shape, FOUR.tobytes())},
        )
        digests.append(weights_of(path).digest())
    assert len({*digests}) == len(kinds)


_SERVED = """
import sys
from pathlib import Path
from engines.choice import Choice
from engines.generate import generate
from engines.model import load
from pipeline.checkpoint.opened import open_checkpoint
for path in sys.argv[1:]:
    model = load(open_checkpoint(Path(path)), Choice("openvino", "f32"))
    picture = generate(model, "a red apple", steps=1, width=32, height=32)
    assert picture.shape == (32, 32, 3) and len(model.digest) == 64
heavy = {"torch", "onnx", "safetensors", "transformers", "export", "model"}
print(*sorted(heavy & {name.split(".")[0] for name in sys.modules}))
"""


def test_a_picture_needs_no_torch_no_onnx_and_no_file_beside_the_model(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "folder", "sd1", levels=2)
    file = write_original(folder, "sd1", tmp_path / "model.safetensors", levels=2)
    before = state(tmp_path)
    command = [sys.executable, "-c", _SERVED, str(folder), str(file)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == []
    assert state(tmp_path) == before
