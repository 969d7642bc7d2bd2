"""python -m engines check: prints each comparison with the reference as it is made."""

from __future__ import annotations

import argparse
import re

from engines.artifact.first_use import artifact_of
from engines.artifact.opened import Artifact
from engines.build.words import command
from engines.cache import store
from engines.cache.sealed import Damaged
from engines.choice import PLANS, Choice
from engines.commands.compare import Finding, compare
from engines.commands.variable import source_of
from engines.cuda import gpu
from engines.errors import BackendError
from engines.model import load, on_gpu
from pipeline.checkpoint.opened import open_checkpoint
from pipeline.samplers import SAMPLERS
from pipeline.size import parse_size
from pipeline.spec import Spec


def check(options: argparse.Namespace) -> int:
    """Compare a model with the reference; 0 when everything is within its tolerance. Errors: LatentdError."""
    choice = Choice(options.backend, options.precision, None, options.device, options.pixels, options.attention)
    if choice.backend not in PLANS:
        on_gpu(choice)  # as the server: a device that is not here is told first
    checkpoint = open_checkpoint(options.model, options.prediction)
    width, height = _size(options.size, checkpoint.spec)
    samplers, steps = _samplers(options.samplers), _steps(options.steps)
    if options.backend in PLANS and not gpu.cuda_here():
        return _plans(artifact_of(checkpoint), options.backend)
    model, reference = load(checkpoint, choice), load(checkpoint, Choice("torch", device="cpu"))
    print(f"{checkpoint.id} {width}x{height}: {model.backend.name} {model.backend.precision} against torch f32")

    def say(finding: Finding) -> None:
        mark = "ok   " if finding.good else "WRONG"
        print(f"  {mark} {finding.what:38} {finding.figure:>9}   (tolerance {finding.tolerance})", flush=True)

    return 0 if compare(model, reference, (width, height), samplers, steps, say) else 1


def _plans(artifact: Artifact, backend: str) -> int:
    """Print of each plan whether it is whole, which is all that shows without its card; 1, as nothing was compared."""
    identities = [
        manifest["identity"]
        for _, manifest in store.manifests()
        if (manifest["identity"].get("artifact"), manifest["identity"].get("backend")) == (artifact.digest, backend)
    ]
    for identity in identities:
        try:
            store.verify(identity)
            state = "whole, its SHA-256 is the one in its manifest"
        except Damaged as error:
            state = f"{error}; run `{command(artifact, identity)}` to build it again"
        print(f"  {identity.get('network')} for {identity.get('target')}: {state}")
    print(
        f"nothing was compared: plans of {backend} run on NVIDIA GPUs, and none runs them here; "
        f"{len(identities)} plan{'' if len(identities) == 1 else 's'} of {artifact.id} in the cache ({gpu.why_not()})"
    )
    return 1


def _size(text: str, spec: Spec) -> tuple[int, int]:
    default, unit = spec.defaults, spec.size_multiple
    try:
        size = parse_size(text) if text else (default.width, default.height)
    except ValueError:
        size = 0, 0
    if any(not 0 < side <= 9999 or side % unit for side in size):
        raise BackendError(f"{source_of(text, '--size')} is {text!r}; it takes WIDTHxHEIGHT, multiples of {unit}")
    return size


def _samplers(text: str) -> list[str]:
    samplers = list(SAMPLERS) if text == "all" else text.split(",")
    if unknown := [name for name in samplers if name not in SAMPLERS]:
        where = source_of(text, "--samplers")
        raise BackendError(f"{where} has {unknown[0]!r}; there are {', '.join(SAMPLERS)}")
    return samplers


def _steps(text: str) -> int:
    if not re.fullmatch(r"\d{1,3}", text) or not 1 <= int(text) <= 150:
        raise BackendError(f"{source_of(text, '--steps')} is {text!r}; it takes a whole number from 1 to 150")
    return int(text)
