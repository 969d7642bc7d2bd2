"""The graphs that are committed, and the specs that they are of: the published models' and the test checkpoints'."""

from __future__ import annotations

import json
from pathlib import Path

import graphs
from pipeline.source import InMemory
from pipeline.spec import Spec, read_spec
from pipeline.spec_json import spec_from_json

_ROOT = Path(__file__).parent.parent
SHIPPED, TESTS = Path(graphs.__file__).parent, _ROOT / "tests/graphs"
_CONFIGS, _DEMO, _SPECS = SHIPPED / "configs.json", _ROOT / "demo/small-things", TESTS / "specs.json"
# Shapes no graph, and differs between models that share all of theirs.
_SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def published() -> dict[str, Spec]:
    """Return the spec of every model whose graphs ship, by the model's name."""
    configs = json.loads(_CONFIGS.read_bytes())
    specs = {"demo/small-things": read_spec(_DEMO)}
    for model, (text, unet, vae) in configs["models"].items():
        parts = {
            "model_index.json": {"_class_name": "StableDiffusionPipeline"},
            "text_encoder/config.json": configs["text_encoder"][text],
            "unet/config.json": configs["unet"][unet],
            "vae/config.json": configs["vae"][vae],
            "scheduler/scheduler_config.json": _SCHEDULE,
        }
        specs[model] = read_spec(InMemory(_CONFIGS, {name: json.dumps(part).encode() for name, part in parts.items()}))
    return specs


def under_test() -> dict[str, Spec]:
    """Return a spec with the networks of every test checkpoint, by a name; none in a wheel.

    tests/support/graph_specs.py writes the parts of a spec that shape a graph; the others are the demo model's.
    """
    values = json.loads(_SPECS.read_bytes()) if _SPECS.is_file() else {}
    demo = read_spec(_DEMO).to_json()
    return {name: spec_from_json(json.loads(json.dumps(demo | parts))) for name, parts in values.items()}


def committed() -> dict[Path, tuple[str, Spec]]:
    """Return the network and a spec of each graph that is to be committed, by its path, in the order of networks."""
    places: dict[str, tuple[Path, tuple[str, Spec]]] = {}
    for network in graphs.NETWORKS:
        for folder, specs in ((SHIPPED, published()), (TESTS, under_test())):
            for spec in specs.values():
                name = graphs.name_of(network, spec)
                places.setdefault(name, (folder / name, (network, spec)))
    return dict(places.values())
