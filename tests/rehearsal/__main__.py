"""python -m tests.rehearsal WHAT .. [-- WHAT ..]: see card.py. What stands between two dashes runs after the other.

serve NAME PIXELS PRECISION SEATS   the backend torch at the size of SD 1.5 or 2.1, from its weights to pixels
section NAME[,NAME] [WALK]          some of gpu-check's or gpu-first's, which may launch nothing that the walk
                                    (benchmarks/gpu/warm.py, or `decoding` alone) has not
ahead WALK..                        walks alone
shares WALK                         what each of two processes compiles of a walk
memory NAME SEATS..                 what torch's tensors take, for docs/gpu.md

With REHEARSAL_COMPILES=1 every kernel that is launched is also compiled, for sm_90, into TRITON_CACHE_DIR.
"""

from __future__ import annotations

import dataclasses
import shlex
import subprocess
import sys
import time
import traceback
import types
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmarks.gpu import warm
from benchmarks.gpu.frame.child import run
from benchmarks.gpu.frame.report import Report, read_rows
from benchmarks.gpu.sections import ceilings
from benchmarks.gpu.subjects import networks
from engines.cuda import stream
from engines.cuda.backend import CudaBackend
from engines.cuda.stepper import CudaStepper, evaluate
from engines.seat import Sitting
from model import weights
from model.clip import ClipText
from model.unet import Unet
from model.vae import VaeDecoder
from pipeline.samplers import table
from tests.rehearsal import card


def load(name: str, pixels: str, precision: str) -> CudaBackend:
    """The backend torch with weights of the right shapes."""
    report = Report("serve", torch.device("cuda"), torch.float16, [], {}, float("inf"))
    spec = networks.whole_spec(report, name)
    if name == "SD 2.1":
        spec = dataclasses.replace(spec, text=dataclasses.replace(spec.text, heads=16, layers=23))
    loads: Any = weights  # files hold numbers, which these tensors have not
    loads.load_text = lambda spec, stored, ops: ClipText(spec.text, ops)
    loads.load_unet = lambda spec, stored, dtype, ops: Unet(spec.unet, ops).to(dtype)
    loads.load_vae_decoder = lambda spec, stored, dtype, ops: VaeDecoder(spec.vae, ops).to(dtype)
    checkpoint: Any = types.SimpleNamespace(spec=spec, weights=None)
    return CudaBackend(checkpoint, precision, pixels=pixels)


def serve(name: str, pixels: str, precision: str, seats: int) -> None:
    backend = load(name, pixels, precision)
    spec, products = backend.spec, torch.backends.cuda.matmul
    assert not products.allow_fp16_reduced_precision_reduction and not products.allow_bf16_reduced_precision_reduction
    context = backend.encode(np.zeros(spec.text.tokens, np.int64))
    assert context.shape == (spec.text.tokens, spec.text.width)
    shape, noisy = spec.latent_shape(512, 512), table(spec.schedule, "dpmpp_2m_sde", 4)
    noise = np.zeros((1 + noisy.draws, *shape), np.float32)
    for chunks in (1, 2):
        stepper, text = backend.stepper(512, 512, seats, chunks), np.concatenate([context] * chunks)
        stepper.sit(0, Sitting(noisy, noise, text, text, 7.5))
        stepper.sit(seats - 1, Sitting(noisy, noise, text, None, 1.0))
        stepper.step([0, seats - 1], predict=[0])
        stepper.step([0])
        assert stepper.pending_prediction(0).get().shape == shape
        latents = stepper.pending_latents(seats - 1)
        stepper.leave(seats - 1)
        assert latents.tensor.device.type == "cuda"
        pixels_made = backend.picture(latents).get()
        assert pixels_made is None, "the stand-in reads ones, so the decoder's flag says: not a number"
    denoiser = backend.denoiser(512, 512, 2)
    denoiser.run([0, 1])
    assert denoiser.outputs.shape == (2, *shape)


def memory(name: str, numbers: list[int], counted: card.Counted) -> None:
    """What torch takes for 512x512, in GB: each graph keeps the most that its run ever held."""
    backend = load(name, "fast", "auto")
    spec, held = backend.spec, counted.alive
    steppers: Any = CudaStepper
    steppers._captured = lambda self, buckets: {}  # the largest is counted below; all the others would only take time
    print(f"weights and the text encoder's buffers {held / 1e9:.2f}, its run {(counted.most - held) / 1e9:.2f} more")
    for seats in numbers:
        stepper = backend.stepper(512, 512, seats)
        buffers = counted.alive - held
        held_now = counted.most = counted.alive
        with stepper._stream.here():  # the largest bucket, whose pool suffices for the others
            buckets = stepper._packed()
            largest = max(buckets, key=lambda key: (key.rows, not key.twins))
            evaluate(
                stepper._network, stepper._kernels, buckets[largest]
            )  # the first time torch makes more fake tensors than later
            counted.most = counted.alive
            evaluate(stepper._network, stepper._kernels, buckets[largest])
        step = counted.most - held_now
        print(f"{seats} seats {buffers / 1e9:.3f}, a step of {largest.rows} rows {step / 1e9:.2f} more")
        del stepper, buckets
    counted.most = before = counted.alive
    backend.decode(np.zeros(spec.latent_shape(512, 512), np.float32))
    print(f"decoding {(counted.most - before) / 1e9:.2f}")


NO_CARD = 77  # the exit status of what could not be tried

# Of the stand-in: torch.compile wants a genuine card, and how many numbers are not zero nobody knows.
LIMITS = (
    "Torch not compiled with CUDA enabled",
    "Found no NVIDIA driver",
    "DynamicOutputShapeException",
    "Legacy CUDA profiling",
)


def section(name: str) -> int:
    """Run a section of gpu-check or gpu-first; return 0, or another status where a case failed."""
    with TemporaryDirectory() as scratch:
        stamp = {"device": card.NAME, "torch": torch.__version__, "triton": "", "cuda": "", "date": ""}
        file = Path(scratch, "rows.csv")
        report = Report(name, torch.device("cuda"), torch.float16, [file], stamp, time.monotonic() + 1000)
        code = run(report, Path(scratch, "state"))
        failed = [row["note"] for row in read_rows(file) if row["status"] == "failed"]
    return code or any(not any(limit in note for limit in LIMITS) for note in failed)


def ahead(walks: list[str]) -> None:
    """Launches what is compiled ahead of a section."""
    report = Report("warm", torch.device("cuda"), torch.float16, [], {}, float("inf"))
    for walk in walks:
        for launch in warm.WALKS[walk](report):
            launch()
        print(f"{walk}: {sum(map(len, card.launched.values()))} variants")


def shares(walk: str) -> None:
    """What each of two processes compiles of a walk: all of it together, and nothing twice."""
    found = []
    report = Report("warm", torch.device("cuda"), torch.float16, [], {}, float("inf"))
    for index in (0, 1):
        card.launched.clear()
        with warm.compiling(index, 2):
            for launch in warm.WALKS[walk](report):
                launch()
        found.append({(name, variant) for name, variants in card.launched.items() for variant in variants})
    card.launched.clear()
    ahead([walk])
    both, whole = found[0] | found[1], {(name, v) for name, variants in card.launched.items() for v in variants}
    assert both == whole and not found[0] & found[1], (len(found[0]), len(found[1]), len(whole))
    assert abs(len(found[0]) - len(found[1])) <= 1


def once() -> None:
    """Do once what is repeated for its time, or to warm up: without numbers it proves nothing more."""
    ceilings._HELD = 0.01
    stream._WARM = 1
    warm.WALKS["decoding"] = lambda check: warm._networks(check, ())


def sections(names: str, walk: list[str]) -> int:
    """Run sections of gpu-check or gpu-first after what is compiled ahead of them; return an exit status."""
    ahead(walk)
    known = {name: set(variants) for name, variants in card.launched.items()}
    code = max(map(section, names.split(",")))
    print(f"{sum(map(len, card.launched.values()))} variants of {len(card.launched)} kernels")
    late = {name: variants - known.get(name, set()) for name, variants in card.launched.items()}
    if walk and any(late.values()):
        raise AssertionError(f"{walk} does not compile ahead: {late}")
    return int(code)


def one(what: str, *arguments: str) -> int:
    """Run one rehearsal; return an exit status."""
    card.launched.clear()
    if what == "memory":
        with card.Counted() as counted, torch.no_grad():
            memory(arguments[0], [int(seats) for seats in arguments[1:]], counted)
        return 0
    with card.Fake(), torch.no_grad():
        if what == "ahead":
            ahead(list(arguments))
        elif what == "shares":
            shares(arguments[0])
        elif what == "section":
            return sections(arguments[0], list(arguments[1:]))
        else:
            name, pixels, precision, seats = arguments
            serve(name, pixels, precision, int(seats))
            for kernel, variants in sorted(card.launched.items()):
                print(f"{kernel}: {len(variants)} variants")
    return 0


def main() -> int:
    once()
    try:
        card.insert()
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"the stand-in of a card cannot be compiled: {error}")
        return NO_CARD
    status = 0
    for words in " ".join(map(shlex.quote, sys.argv[1:])).split(" -- "):
        try:
            code = one(*shlex.split(words))
        except Exception:  # what comes after it is rehearsed all the same
            traceback.print_exc()
            code = 1
        print(f"== {code} {words}", flush=True)
        status = status or code
    return status


if __name__ == "__main__":
    sys.exit(main())
