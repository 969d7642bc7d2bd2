"""Headers of safetensors files: what is no header, or an absurd one, is refused in one sentence and little memory."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.checkpoint.header import read_header
from pipeline.errors import CheckpointError
from tests.support.checkpoints import make_checkpoint

ROOT = Path(__file__).parents[3]
ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b'{"a": 1, "a": 2}', "the key 'a' stands twice"),
        (b'{"\xff": 1}', "can't decode byte 0xff"),
        (b'{"a"\0: 1}', "Expecting ':'"),
        (json.dumps({"a": ENTRY}).encode("utf-16"), "not a whole safetensors file"),
        (json.dumps({"a" * 300: ENTRY}).encode(), "a name of 300 characters"),
        (json.dumps({"a\nb": ENTRY | {"shape": [3]}}).encode(), r"a\nb has shape [3] in F32, and 8 bytes"),
        (json.dumps({"a": ENTRY | {"shape": [1] * 100_000}}).encode(), "a has shape"),
        (b'{"a": {"dtype": "F32", "shape": [' + b",".join([b"9" * 4000] * 500) + b'], "data_offsets": [0, 8]}}', "a"),
        (b'{"a": {"dtype": "F32", "shape": [' + b"9" * 5000 + b'], "data_offsets": [0, 8]}}', "limit"),
        (json.dumps({"a": ENTRY | {"data_offsets": [0, 2**63]}}).encode(), "a has shape"),
        (json.dumps({"a": ENTRY | {"data_offsets": [8, 0]}}).encode(), "a has shape"),
        (json.dumps({"a": ENTRY | {"data_offsets": [0, 8, 8]}}).encode(), "not a whole safetensors file"),
        (json.dumps({"a": ENTRY | {"data_offsets": [-8, 0]}}).encode(), "a has shape"),
        (json.dumps({"a": {"dtype": "F32", "data_offsets": [0, 8]}}).encode(), "'shape'"),
        (json.dumps({str(number): {} for number in range(10_001)}).encode(), "it has 10001 tensors; latentd reads"),
        (b'{"__metadata__": ' + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"}", "recursion"),
    ],
)  # fmt: skip
def test_absurd_headers(tmp_path: Path, text: bytes, words: str) -> None:
    (tmp_path / "m.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(CheckpointError) as caught:
        read_header(tmp_path / "m.safetensors")
    message = str(caught.value)
    assert f"{tmp_path / 'm.safetensors'} is not a whole safetensors file: " in message and words in message
    assert message.isprintable() and len(message) <= 1200


LIMITED = """
import resource, sys
from pathlib import Path
from pipeline.checkpoint.header import read_header
from pipeline.errors import CheckpointError
from pipeline.spec import read_spec
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
try:
    (read_spec if sys.argv[1] == "spec" else read_header)(Path(sys.argv[2]))
except CheckpointError as error:
    sys.exit(str(error))
"""


def limited(what: str, path: Path) -> str:
    """The refusal of a process that may have 1 GiB of addresses, most of which libraries take."""
    command = [sys.executable, "-c", LIMITED, what, str(path)]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 1 and "Traceback" not in ran.stderr, ran.stderr[-2000:]
    return ran.stderr


def test_a_header_of_a_gigabyte_is_not_read(tmp_path: Path) -> None:
    with (path := tmp_path / "m.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", (1 << 31) - 8) + b"[")
        file.truncate(1 << 31)  # takes no place on the disk
    assert f"a header of {(1 << 31) - 8} bytes in a file of {1 << 31}; at most {16 << 20}" in limited("header", path)


def test_a_header_of_brackets_stays_small(tmp_path: Path) -> None:
    text = b'{"a": [' + b"[]," * (5 << 20) + b"[]]}"
    (path := tmp_path / "m.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    assert "not a whole safetensors file" in limited("header", path)


def test_a_config_of_a_hundred_megabytes_is_not_read(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path)
    with (checkpoint / "unet/config.json").open("r+b") as file:
        file.truncate(100 << 20)
    assert f"has {100 << 20} bytes; latentd reads at most {1 << 20}" in limited("spec", checkpoint)
