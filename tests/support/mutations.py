"""Checkpoints damaged at random: every one is read, or refused in one sentence, soon and in little memory.

    python -m tests.support.mutations [--times 20000] [--seed 0]

test_mutations.py runs a few hundred of the same. What is found here becomes a test of its own.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import resource
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from model.weights import check_weights
from pipeline.checkpoint.opened import Checkpoint, open_checkpoint
from pipeline.errors import LatentdError
from pipeline.samplers import table
from pipeline.tokenizer import ClipTokenizer
from tests.support.checkpoints import make_checkpoint

SECONDS = 5.0  # of the processor, a case; 0.02 is usual
MEGABYTES = 600.0  # more than before the first case

NASTY: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 7, 8, 64, 1e308, -1e308, 1e-320, float("nan"), float("inf"), 10**9, 2**31, 2**63,
    2**64, 10**400, -(10**400), 0.5, "", "x", "a\nb", "\0", "\ud800", "\x1b[2J", "x" * 100_000, [], [[]], {}, {"": []},
    [1] * 10_000, [10**9, 10**9], ["DownBlock2D"] * 40, [32, 64, 128, 256, 512, 1024, 2048], "F16", "F8_E4M3", "I64",
    "[[[",
]  # fmt: skip


def _places(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Each container in a JSON value with each of its keys."""
    for key in range(len(value)) if isinstance(value, list) else list(value):
        found.append((value, key))
        if isinstance(value[key], list | dict):
            _places(value[key], found)
    return found


def mutate_json(data: bytes, dice: random.Random) -> bytes:
    value = json.loads(data)
    for _ in range(dice.choice((1, 1, 1, 2, 5))):
        if not (places := _places(value, [])):
            break
        container, key = dice.choice(places)
        what = dice.randrange(6)
        if what == 0:
            del container[key]
        elif what == 1 and isinstance(container, dict):
            container[dice.choice(("", "é", "a\nb", "x" * 5000, "text_model.x", "__metadata__"))] = container[key]
        elif what == 2:
            container[key] = copy.deepcopy(container[dice.choice([k for c, k in places if c is container])])
        else:
            container[key] = copy.deepcopy(dice.choice(NASTY))
    deep = dice.choice((50, 700, 900, 960, 980))  # near what the parser takes
    text = json.dumps(value).replace('"[[["', "[" * deep + "]" * deep)
    if dice.randrange(12) == 0:
        text = text.replace("{", '{"a": 1, "a": 2, ', 1)
    return text.encode(errors="surrogatepass")


def mutate_bytes(data: bytes, dice: random.Random) -> bytes:
    own = bytearray(data)
    what = dice.randrange(5)
    if what == 0:
        return bytes(own[: dice.randrange(len(own) + 1)])
    if what == 1:
        place = dice.randrange(len(own) + 1)
        own[place:place] = dice.choice((b"\0", b"[" * 100_000, b'"', b"\xff\xfe", b"9" * 5000, b"\n", b"{"))
        return bytes(own)
    for _ in range(dice.choice((1, 2, 20))):
        own[dice.randrange(len(own))] ^= 1 << dice.randrange(8)
    return bytes(own)


def mutate_safetensors(data: bytes, dice: random.Random) -> bytes:
    (size,) = struct.unpack("<Q", data[:8])
    header, rest = data[8 : 8 + size], data[8 + size :]
    what = dice.randrange(5)
    if what == 0:
        return mutate_bytes(data, dice)
    if what == 1:
        return struct.pack("<Q", dice.choice((0, 1, size - 1, size + 1, len(data), 2**63, 2**64 - 1))) + data[8:]
    if what == 2:
        return data[: 8 + size] + mutate_bytes(rest, dice)
    header = mutate_json(header, dice) if what == 3 else mutate_bytes(header, dice)
    return struct.pack("<Q", len(header)) + header + rest


def mutation(name: str) -> Callable[[bytes, random.Random], bytes]:
    return (
        mutate_safetensors if name.endswith(".safetensors") else mutate_json if name.endswith(".json") else mutate_bytes
    )


def read(model: Path) -> tuple[Checkpoint, ClipTokenizer]:
    """Read all that a server reads of a checkpoint before it compiles anything. Errors: LatentdError."""
    opened = open_checkpoint(model)
    tokenizer = ClipTokenizer(opened.source, opened.spec.text)
    check_weights(opened.spec, opened.weights)
    opened.weights.digest()
    return opened, tokenizer


def try_one(checkpoint: Path, name: str, whole: bytes, dice: random.Random) -> str:
    """Damages one file, reads all, restores it. The refusal, or "" where there was none. Raises what is a bug."""
    change = mutate_bytes if dice.randrange(5) == 0 else mutation(name)
    path = checkpoint / name
    damaged = change(whole, dice)
    begin, message = time.process_time(), ""
    try:
        path.write_bytes(damaged)
        opened, tokenizer = read(checkpoint)
        default = opened.spec.defaults
        table(opened.spec.schedule, default.sampler, default.steps)
        tokenizer.encode("a photo of a red apple")
    except LatentdError as error:
        message = str(error)
        assert message.isprintable() and len(message) <= 1200, message
        assert str(checkpoint) in message or "steps is" in message, message
    finally:
        path.write_bytes(whole)
    assert time.process_time() - begin < SECONDS, f"{name}: {time.process_time() - begin:.1f} s; {message}"
    return message


def run(folder: Path, times: int, seed: int, say: Callable[[str], None]) -> tuple[int, int]:
    """How many were refused, and how many broke something, each of which is told to `say`."""
    checkpoint = make_checkpoint(folder / "checkpoint")
    wholes = {p.relative_to(checkpoint).as_posix(): p.read_bytes() for p in checkpoint.rglob("*") if p.is_file()}
    read(checkpoint)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    refused = broken = 0
    for number in range(times):
        dice = random.Random(f"{seed} {number}")
        name = dice.choice(sorted(wholes))
        try:
            refused += bool(try_one(checkpoint, name, wholes[name], dice))
        except Exception:
            broken += 1
            say(f"case {number} of seed {seed}, {name}:\n{traceback.format_exc()}")
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3 - before
    if grown > MEGABYTES:
        broken += 1
        say(f"it took {grown:.0f} MB more than before")
    return refused, broken


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--times", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        refused, broken = run(Path(place), options.times, options.seed, print)
    print(f"{refused} refused, {broken} broken")
    sys.exit(broken > 0)
