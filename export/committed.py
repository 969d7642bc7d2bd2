"""The graphs that are committed, and the specs that they are of: the published models' and the test checkpoints'."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import graphs
from pipeline.checkpoint.clip import JUDGE, open_judge, read_vision
from pipeline.checkpoint.networks import read_text
from pipeline.config import Config
from pipeline.networks import ClipSpec
from pipeline.source import InMemory
from pipeline.spec import Spec, read_spec
from pipeline.spec_json import clip_from_json, spec_from_json

_ROOT = Path(__file__).parent.parent
SHIPPED, TESTS = Path(graphs.__file__).parent, _ROOT / "tests/graphs"
_CONFIGS, _DEMO, _SPECS = SHIPPED / "configs.json", _ROOT / "demo/small-things", TESTS / "specs.json"
_HEADED = "CLIPTextModelWithProjection"
# Shapes no graph, and differs between models that share all of theirs.
_SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def published() -> dict[str, Spec]:
    """Return the spec of every model whose graphs ship, by the model's name."""
    configs = json.loads(_CONFIGS.read_bytes())
    specs = {"demo/small-things": read_spec(_DEMO)}
    for model, (text, unet, vae) in configs["models"].items():
        first, *second = (configs["text_encoder"][each] for each in text.split(" and "))
        parts = {
            "model_index.json": {"_class_name": f"StableDiffusion{'XL' if second else ''}Pipeline"},
            "text_encoder/config.json": first,
            **({"text_encoder_2/config.json": second[0] | {"architectures": [_HEADED]}} if second else {}),
            "unet/config.json": configs["unet"][unet],
            "vae/config.json": configs["vae"][vae],
            "scheduler/scheduler_config.json": _SCHEDULE,
        }
        specs[model] = read_spec(InMemory(_CONFIGS, {name: json.dumps(part).encode() for name, part in parts.items()}))
    for model in ("demo/small-things", "stable-diffusion-v1-5/stable-diffusion-v1-5"):
        specs[f"{model} with IP-Adapter"] = styled(specs[model])
    return specs


def styled(spec: Spec) -> Spec:
    """Return the spec of a model that has a style adapter, with as many tokens of a picture as all published ones."""
    return replace(spec, unet=replace(spec.unet, style_tokens=4))


def published_clips() -> dict[str, ClipSpec]:
    """Return the spec of every CLIP folder whose graphs ship, by its name."""
    judge = open_judge(_DEMO / JUDGE, lambda _: None).spec
    specs = {"demo/small-things's judge": judge}
    for name, config in json.loads(_CONFIGS.read_bytes())["clip"].items():
        parts = Config(InMemory(_CONFIGS, {name: json.dumps(config).encode()}), name)
        text = read_text(parts.section("text_config"), lambda _: None) if "text_config" in config else None
        specs[name] = ClipSpec(read_vision(parts.section("vision_config"), config["projection_dim"]), text)
    return specs


def under_test() -> dict[str, Spec]:
    """Return a spec with the networks of every test checkpoint, by a name; none in a wheel.

    tests/support/graph_specs.py writes the parts of a spec that shape a graph; the others are the demo model's.
    """
    demo = read_spec(_DEMO).to_json()
    parts = {name: parts for name, parts in _tested().items() if "vision" not in parts}
    return {name: spec_from_json(json.loads(json.dumps(demo | part))) for name, part in parts.items()}


def clips_under_test() -> dict[str, ClipSpec]:
    """Return a spec with the towers of every test CLIP folder, likewise."""
    return {name: clip_from_json(parts) for name, parts in _tested().items() if "vision" in parts}


def _tested() -> dict[str, dict[str, Any]]:
    return json.loads(_SPECS.read_bytes()) if _SPECS.is_file() else {}


def committed() -> dict[Path, tuple[str, Spec | ClipSpec]]:
    """Return the network and a spec of each graph that is to be committed, by its path, in the order of networks."""
    models, clips = [(SHIPPED, published()), (TESTS, under_test())], [(SHIPPED, published_clips())]
    clips.append((TESTS, clips_under_test()))
    places: dict[str, tuple[Path, tuple[str, Spec | ClipSpec]]] = {}
    for networks, listed in ((graphs.NETWORKS, models), (graphs.TOWERS, clips)):
        for network in networks:
            for folder, specs in listed:
                for spec in specs.values():
                    if network == "text_encoder" and spec.text is None:
                        continue
                    name = graphs.name_of(network, spec)
                    places.setdefault(name, (folder / name, (network, spec)))
    return dict(places.values())
