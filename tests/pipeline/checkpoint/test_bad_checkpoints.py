"""Hostile and damaged checkpoints: each refused in one sentence, by a server and by an export.

What is refused by a config's key, a header's fault or a missing tensor has its own tests (tests/pipeline/test_spec,
test_single_file_refusals, test_parts); here is what could hang, fill the memory or lie.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from export.__main__ import main
from pipeline.checkpoint.parts import weight_files
from pipeline.config import read_object
from pipeline.errors import CheckpointError
from pipeline.source import Folder
from tests.support.checkpoints import make_checkpoint
from tests.support.layouts import TEXT, UNET, VAE, state
from tests.support.mutations import read
from tests.support.original import make_folder, write_original

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("made") / "tiny")


@pytest.fixture
def checkpoint(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "tiny"))


def refusal(checkpoint: Path, capsys: pytest.CaptureFixture[str] | None = None) -> str:
    """Return the sentence of all reading, and of `python -m export` where `capsys` is given; nothing was written."""
    before = state(checkpoint.parent)
    with pytest.raises(CheckpointError) as caught:
        read(checkpoint)
    message = str(caught.value)
    assert message.isprintable() and len(message) <= 1200
    if capsys is not None:
        assert main([str(checkpoint), "--out", str(checkpoint.parent / "out")]) == 1
        output = capsys.readouterr()
        assert output.err == f"{message}\n" and output.out == ""
    assert state(checkpoint.parent) == before
    return message


NAN = "holds NaN or infinite numbers; a model of such weights draws nothing"
READ = ["model_index.json", "unet/config.json", "latentd.json", "tokenizer/vocab.json", "tokenizer/merges.txt", UNET]


@pytest.mark.parametrize("name", [*READ, "tokenizer/special_tokens_map.json"])
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (os.mkfifo, "it is a pipe"),
        (os.mkdir, "it is a folder"),
        (lambda path: os.symlink("/dev/zero", path), "it is a device"),
        (lambda path: os.symlink(path.name, path), "levels of symbolic links"),
    ],
)
@pytest.mark.timeout(20)  # a pipe would be waited for
def test_what_is_no_file(
    checkpoint: Path, name: str, make: Callable[[Path], object], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkpoint / name).unlink(missing_ok=True)
    make(checkpoint / name)
    message = refusal(checkpoint, capsys)
    assert message.startswith(f"{checkpoint / name} ") and words in message


@pytest.mark.timeout(20)
def test_a_single_file_that_is_a_pipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(pipe := tmp_path / "m.safetensors")
    assert main([str(pipe), "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err == f"{pipe} cannot be read: it is a pipe\n"


@pytest.mark.timeout(20)
def test_what_nobody_needs_is_not_opened(checkpoint: Path) -> None:
    wanted = read(checkpoint)[0]
    os.mkfifo(checkpoint / "extra.json")
    os.mkfifo(checkpoint / "unet/a.safetensors.index.json")
    os.mkfifo(checkpoint / "unet/extra.safetensors")
    (checkpoint / "tokenizer/more.json").symlink_to("/dev/zero")
    again = read(checkpoint)[0]
    assert again.weights.digest() == wanted.weights.digest() and again.small_files() == wanted.small_files()


@pytest.mark.parametrize("name", READ)
def test_a_file_that_may_not_be_read(checkpoint: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (checkpoint / name).chmod(0)
    if os.access(checkpoint / name, os.R_OK):
        pytest.skip("whoever runs the tests may read everything")
    message = refusal(checkpoint, capsys)
    assert f"{checkpoint / name}" in message and "Permission denied" in message


@pytest.mark.parametrize("first", [b"PK\x03\x04\0\0\x08\x08", b"\x80\x02}q\0X\x04\0", b"\x80\x04\x95\x0a\0\0\0\0\0"])
def test_a_pickle_under_another_name(checkpoint: Path, first: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    (checkpoint / VAE).write_bytes(first + bytes(1000))
    message = refusal(checkpoint, capsys)
    if first[:2] == b"\x80\x04":  # whose first bytes are a header's length, as far as they go
        assert "not a whole safetensors file" in message
    else:
        assert message == (
            f"{checkpoint / VAE} is not a whole safetensors file: it is a pickle under another name; a pickle can run "
            "code, so latentd reads only safetensors"
        )


@pytest.mark.parametrize("suffix", ["bin", "ckpt", "pt", "pth"])
def test_a_pickle_by_its_name_is_not_opened(checkpoint: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    (checkpoint / VAE).unlink()
    os.mkfifo(checkpoint / f"vae/diffusion_pytorch_model.{suffix}")
    assert f"pickle (diffusion_pytorch_model.{suffix})" in refusal(checkpoint, capsys)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_weights_that_are_no_numbers(
    checkpoint: Path, value: float, dtype: torch.dtype, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = {name: tensor.to(dtype) for name, tensor in load_file(checkpoint / VAE).items()}
    weights["decoder.conv_out.bias"][-1] = value
    save_file(weights, checkpoint / VAE)
    assert refusal(checkpoint, capsys) == f"{checkpoint / VAE}: vae.decoder.conv_out.bias {NAN}"


@pytest.mark.parametrize("number", [3.5e38, -1e300])
def test_weights_past_the_range_that_is_computed_in(checkpoint: Path, number: float) -> None:
    weights = {name: tensor.double() for name, tensor in load_file(checkpoint / UNET).items()}
    weights["conv_in.bias"][0] = number
    save_file(weights, checkpoint / UNET)
    assert "conv_in.bias holds NaN or infinite" in refusal(checkpoint)


def test_a_single_file_with_nan(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "folder", "sd1", levels=2)
    file = write_original(folder, "sd1", tmp_path / "m.safetensors", levels=2)
    weights, name = load_file(file), "model.diffusion_model.out.2.bias"
    weights[name][0] = float("nan")
    save_file(weights, file)
    assert refusal(file) == f"{file}: unet.conv_out.bias {NAN}"


def test_everything_is_told_before_anything_is_written(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not when the text encoder and the UNet have been laid out, which takes minutes for a large model."""
    weights = load_file(checkpoint / VAE)
    weights["decoder.conv_out.bias"] = torch.zeros(7)
    save_file(weights, checkpoint / VAE)
    assert "decoder.conv_out.bias has shape [7], its config says [3]" in refusal(checkpoint, capsys)


@pytest.mark.parametrize(("path", "names"), [
    (TEXT, ("text_model.final_layer_norm.bias", "final_layer_norm.bias")),
    (VAE, ("decoder.mid_block.attentions.0.to_q.bias", "decoder.mid_block.attentions.0.query.bias")),
])  # fmt: skip
def test_a_tensor_under_an_old_and_a_new_name(checkpoint: Path, path: str, names: tuple[str, str]) -> None:
    weights = load_file(checkpoint / path)
    save_file(weights | {names[1]: weights[names[0]].clone()}, checkpoint / path)
    assert f"the tensor {names[0]} is there twice" in refusal(checkpoint)


def test_a_tensor_in_two_shards(checkpoint: Path) -> None:
    weights = load_file(checkpoint / UNET)
    (checkpoint / UNET).unlink()
    for name in "ab":
        save_file(weights, checkpoint / f"unet/{name}.safetensors")
    places = dict.fromkeys(weights, "a.safetensors") | {"conv_in.bias": "b.safetensors"}
    (checkpoint / f"{UNET}.index.json").write_text(json.dumps({"weight_map": places}))
    assert "is there twice" in refusal(checkpoint)


def test_an_index_of_very_many_shards(checkpoint: Path) -> None:
    (checkpoint / UNET).unlink()
    places = {str(number): f"{number}.safetensors" for number in range(20_000)}
    (checkpoint / f"{UNET}.index.json").write_text(json.dumps({"weight_map": places}))
    assert "must name 1 to 1000 .safetensors files beside it, not 20000" in refusal(checkpoint)
    (checkpoint / f"{UNET}.index.json").write_text('{"weight_map": {"a": "a.safetensors", "a": "b.safetensors"}}')
    assert "the key 'a' stands twice" in refusal(checkpoint)


@pytest.mark.parametrize(
    ("name", "key", "value", "limit"),
    [
        ("unet/config.json", "block_out_channels", [10**9, 10**9], "65536"),
        ("unet/config.json", "block_out_channels", [32] * 7, "at most 6 integers"),
        ("unet/config.json", "layers_per_block", 10**9, "32"),
        ("unet/config.json", "transformer_layers_per_block", 10**9, "32"),
        ("unet/config.json", "sample_size", 10**9, "4096"),
        ("unet/config.json", "cross_attention_dim", 10**400, "65536"),
        ("unet/config.json", "freq_shift", 10**400, "1e+06"),
        ("vae/config.json", "layers_per_block", 10**9, "32"),
        ("vae/config.json", "latent_channels", 10**9, "65536"),
        ("vae/config.json", "scaling_factor", 1e300, "1e+06"),
        ("text_encoder/config.json", "num_hidden_layers", 10**9, "256"),
        ("text_encoder/config.json", "max_position_embeddings", 10**9, "4096"),
        ("text_encoder/config.json", "vocab_size", 10**12, "1048576"),
        ("scheduler/scheduler_config.json", "num_train_timesteps", 10**12, "10000"),
        ("scheduler/scheduler_config.json", "beta_end", -(10**400), "1e+06"),
        ("latentd.json", "steps", 10**9, "150"),
        ("latentd.json", "guidance", 1e300, "30"),
        ("latentd.json", "width", 10**12, "4096"),
    ],
)
def test_absurd_sizes(checkpoint: Path, name: str, key: str, value: object, limit: str) -> None:
    path = checkpoint / name
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    message = refusal(checkpoint)
    assert message.startswith(f"{path}: {key} is ") and limit in message


@pytest.mark.parametrize("name", ["unet/config.json", "tokenizer/vocab.json", "tokenizer/tokenizer_config.json"])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1, "a": 1}', "the key 'a' stands twice"),
        ('{"a": ' + "9" * 5000 + "}", "limit (4300 digits)"),
        ('{"a": ' + "[" * 100_000, "recursion"),
    ],
)
def test_json_bombs(checkpoint: Path, name: str, text: str, words: str) -> None:
    (checkpoint / name).write_text(text)
    message = refusal(checkpoint)
    assert message.startswith(str(checkpoint / name)) and words in message


@pytest.mark.parametrize("deep", [800, 900, 950, 970, 980, 990])
def test_nested_nearly_too_deep(checkpoint: Path, deep: int) -> None:
    """What the parser takes is still to be shown in the sentence that refuses it."""
    path = checkpoint / "unet/config.json"
    path.write_text('{"act_fn": ' + "[" * deep + "]" * deep + "}")
    assert str(path) in refusal(checkpoint)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("merges.txt", "#version: 0.2\nzzz yyy\n", "do not fit its tokens"),
        ("merges.txt", "#version: 0.2\nt h e\n", "cannot be read"),
        ("merges.txt", "\udcff", "cannot be read"),
        ("merges.txt", None, "merges.txt has 17825792 bytes; latentd reads at most 16777216"),
        ("vocab.json", None, "vocab.json has 17825792 bytes; latentd reads at most 16777216"),
        ("vocab.json", '{"a": 1e3}', "has number 1000.0"),
        ("vocab.json", '{"a": 4294967296}', "has number 4294967296"),
        ("vocab.json", "{}", "lacks the token"),
        ("special_tokens_map.json", '{"pad_token": ["a"]}', "pad_token is not a token's text"),
        ("special_tokens_map.json", '{"pad_token": "' + "x" * 100_000 + '"}', "lacks the token"),
    ],
)  # fmt: skip
def test_damaged_tokenizers(checkpoint: Path, name: str, text: str | None, words: str) -> None:
    path = checkpoint / "tokenizer" / name
    path.write_bytes(bytes(17 << 20) if text is None else text.encode(errors="surrogateescape"))
    assert words in refusal(checkpoint)


def test_names_with_newlines(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = Path(shutil.copytree(made, tmp_path / "a\n\x1b[2Jb"))
    (checkpoint / UNET).unlink()
    assert r"a\n\x1b[2Jb/unet" in refusal(checkpoint, capsys)


def test_the_reader_reads_no_more_than_it_says(tmp_path: Path) -> None:
    """A file in /proc has no size and much to say."""
    long = next(path for path in map(Path, ("/proc/kallsyms", "/proc/self/smaps")) if path.is_file())
    assert long.stat().st_size == 0 and stat.S_ISREG(long.stat().st_mode)
    with pytest.raises(CheckpointError, match="has 101 bytes; latentd reads at most 100"):
        read_object(Folder(long.parent), long.name, 100)
    with pytest.raises(CheckpointError, match="missing"):
        weight_files(tmp_path, "unet")


def test_a_server_says_the_same(checkpoint: Path) -> None:
    """As a process: the sentence, status 1, and nothing written."""
    weights = load_file(checkpoint / UNET)
    weights["conv_in.bias"][0] = float("nan")
    save_file(weights, checkpoint / UNET)
    before = state(checkpoint.parent)
    command = [
        sys.executable,
        "-m",
        "server",
        "--model",
        str(checkpoint),
        "--http-port",
        "off",
        "--grpc-port",
        "0",
        "--metrics-port",
        "0",
    ]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    lines = ran.stderr.strip().splitlines()
    assert ran.returncode == 1 and lines[-1] == f"latentd: {checkpoint / UNET}: unet.conv_in.bias {NAN}"
    assert "Traceback" not in ran.stderr
    assert state(checkpoint.parent) == before
