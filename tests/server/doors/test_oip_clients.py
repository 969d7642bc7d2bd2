"""tritonclient, unmodified, in a process of its own; `make peers` has the others."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engines.model import Model
from server.doors.oip.inference import inference_pb2 as pb
from tests.support.doors import DOORS
from tests.support.patience import PATIENCE
from tests.support.serving import address, serving

ROOT = Path(__file__).parent.parent.parent.parent
PACKAGES = Path(sys.prefix, "tritonclient")  # `make test` puts it there


@pytest.mark.skipif(not PACKAGES.exists(), reason="make test installs tritonclient")
def test_tritonclient_gets_the_same_pictures_however_it_asks(model: Model, tmp_path: Path) -> None:
    descriptor = tmp_path / "inference.pb"
    descriptor.write_bytes(pb.DESCRIPTOR.serialized_pb)
    with serving(model, seats=2) as server:
        done = subprocess.run(
            [sys.executable, ROOT / "tests/peers/triton.py", address(server), model.id, descriptor],
            env={**os.environ, "PYTHONPATH": str(PACKAGES)},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        expected = DOORS[0].ask(server, prompt="a red apple", seed=7, images=2, steps=3).pictures
    for way in ("infer", "async_infer", "stream", "unary_on_a_stream", "asyncio"):
        assert told[way] == [hashlib.sha256(picture).hexdigest() for picture in expected], way
    assert told["refusal"] == ["StatusCode.INVALID_ARGUMENT", "steps is 999; it must be 1 to 150"]
    assert told["stream_refusal"] == "steps is 999; it must be 1 to 150"
    assert told["outputs"] == ["image", "index", "preview", "seed", "step", "steps"]
