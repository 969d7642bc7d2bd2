"""The test checkpoints whose graphs are committed in tests/graphs; what shapes these is in its specs.json.

`make graphs` reads that. python -m tests.support.graph_specs writes it after one of the checkpoints was changed; a test
says when that is due.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

from export.committed import styled
from pipeline.networks import ClipSpec
from pipeline.spec import Spec, read_spec
from tests.support.checkpoints import INPAINTING, VELOCITY, make_checkpoint
from tests.support.clips import ENCODER, JUDGE
from tests.support.original import make_folder
from tests.support.sdxl import write_configs
from tests.support.topologies import TOPOLOGIES, VAE

SPECS = Path(__file__).parents[1] / "graphs" / "specs.json"
# Each writes a checkpoint into the folder that it is given.
CHECKPOINTS: dict[str, Callable[[Path], object]] = {
    "sd1": lambda folder: make_checkpoint(folder, kind="sd1"),
    "sd2": lambda folder: make_checkpoint(folder, kind="sd2"),
    "velocity": lambda folder: make_checkpoint(folder, **VELOCITY),
    "lcm": lambda folder: make_checkpoint(folder, unet={"time_cond_proj_dim": 32}),
    "inpainting": lambda folder: make_checkpoint(folder, **INPAINTING),
    "plugins": lambda folder: make_checkpoint(folder, unet={"block_out_channels": [64, 80], "attention_head_dim": 2}),
    "topology sd1": lambda folder: make_checkpoint(folder, vae=VAE, **TOPOLOGIES["sd1"]),
    "topology sd2": lambda folder: make_checkpoint(folder, vae=VAE, **TOPOLOGIES["sd2"]),
    "original sd1": lambda folder: make_folder(folder, "sd1"),
    "original sd2": lambda folder: make_folder(folder, "sd2"),
    "original sd1, 2 levels": lambda folder: make_folder(folder, "sd1", levels=2),
    "original sd2, 2 levels": lambda folder: make_folder(folder, "sd2", levels=2),
    "original sd2, 2 levels of 1 layer": lambda folder: make_folder(folder, "sd2", levels=2, layers=1),
    "sdxl": write_configs,
}


STYLED = ("sd1", "topology sd1", "lcm")  # these also with a style adapter


def specs_of_all() -> dict[str, Spec | ClipSpec]:
    """Return the spec of each of CHECKPOINTS, read from its configs; its weights are not written."""
    specs: dict[str, Spec | ClipSpec] = {"clip encoder": ENCODER, "clip judge": JUDGE}
    with patch("tests.support.checkpoints._write_weights"), patch("tests.support.original._stir"):
        for name, make in CHECKPOINTS.items():
            with tempfile.TemporaryDirectory() as folder:
                make(Path(folder))
                specs[name] = spec = read_spec(Path(folder))
                if name in STYLED:
                    specs[f"{name}, styled"] = styled(spec)
    return specs


def text_of(specs: dict[str, Spec | ClipSpec]) -> str:
    """Return what specs.json should hold: of each spec the parts that shape graphs, a spec a line."""
    parts = {
        name: {
            part: value
            for part, value in spec.to_json().items()
            if part in ("text", "text_2", "unet", "vae", "vision") and value
        }
        for name, spec in specs.items()
    }
    return "{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(part)}" for name, part in parts.items()) + "\n}\n"


if __name__ == "__main__":
    SPECS.write_text(text_of(specs_of_all()))
