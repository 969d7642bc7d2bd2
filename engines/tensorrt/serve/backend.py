"""Backends tensorrt and tensorrt_rtx: the networks as plans from the store, in the same captured step as torch's.

Experimental: nothing is compiled here but what RTX makes of its plans when they first run. Written against the APIs,
tested with stand-ins on a CPU: no card has run this.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from engines.artifact.first_use import artifact_of
from engines.build.makers import maker_of
from engines.cache import store
from engines.cpu.torch import Moments
from engines.cuda.backend import device_named
from engines.cuda.device import CudaDevice, key_of
from engines.cuda.kernels import Kernels, triton_kernels
from engines.tensorrt.api import api
from engines.tensorrt.serve import first_run
from engines.tensorrt.serve.engine import TensorRtEngine
from engines.tensorrt.serve.network import PlanNetwork
from engines.tensorrt.serve.plan import Plan, Workspace
from engines.tensorrt.serve.plans import Plans
from graphs import ports
from pipeline.checkpoint.opened import Checkpoint
from pipeline.spec import Spec

log = logging.getLogger("latentd.plans")

# Loads a plan; the bytes are what TensorRT for RTX compiled of it in an earlier process, if anything.
Load = Callable[[store.Engine, bytes], TensorRtEngine]


class TensorRtBackend(CudaDevice):
    """See engines.backend.Backend. Only tests pass a `device`, `kernels` or `load` other than a GPU's."""

    name = "tensorrt"

    def __init__(
        self,
        checkpoint: Checkpoint,
        precision: str = "auto",
        threads: int | None = None,
        *,
        pixels: str = "fast",
        attention: str = "native",
        device: str = "cuda",
        kernels: Kernels | None = None,
        load: Load | None = None,
    ) -> None:
        log.warning("backend %s is experimental: no GPU has run it yet (docs/gpu.md)", self.name)
        artifact = artifact_of(checkpoint)
        builder = maker_of(self.name, attention).make(artifact, None, precision)  # for the GPU that is here
        self._plans, place = Plans(artifact, builder), device_named(device)
        shared = self._plans.shared_identity()
        self.precision = shared["precision"]
        self._of_plans = {part: shared[part] for part in ("version", "attention")}
        networks = _PlanNetworks(artifact.spec, self._plans, load or _loader(self.name), place)
        self.moments = Moments(checkpoint)  # on the host, beside the steps
        super().__init__(artifact.spec, networks, kernels or triton_kernels(), place, pixels)

    def identity(self) -> dict[str, Any]:
        return super().identity() | self._of_plans

    def identities(self, width: int, height: int) -> dict[str, dict[str, Any]]:
        """See Backend.identities, and Plans.identities."""
        return self._plans.identities((width, height))


class TensorRtRtxBackend(TensorRtBackend):
    """Plans of TensorRT for RTX, which are built without a GPU."""

    name = "tensorrt_rtx"


class _PlanNetworks:
    """See engines.cuda.device.Networks. Each stream has one workspace: plans that share one run one after another."""

    def __init__(self, spec: Spec, plans: Plans, load: Load, device: torch.device) -> None:
        self._spec, self._plans, self._load, self._device = spec, plans, load, device
        self._stepping, self._decoding = Workspace(device), Workspace(device)
        self._new: list[tuple[str, Plan, bytes]] = []  # each loaded plan: its SHA-256, and what was kept of it

    def text(self, lora: Mapping[str, Tensor] | None = None) -> Callable[[Tensor], Sequence[Tensor]]:
        assert lora is None, "plans take no LoRAs"
        plan = self._bound(self._plans.text_encoder(), Workspace(self._device))

        def run(ids: Tensor) -> list[Tensor]:
            plan.inputs["ids"].copy_(ids)
            plan.enqueue()
            return [plan.outputs[name] for name in ports.outputs("text_encoder", self._spec)]

        return run

    def unet(self, width: int, height: int, chunks: int, rank: int = 0) -> PlanNetwork:
        size, spec = (width, height), self._spec
        rows = self._plans.unet_rows(size, chunks)
        log.info("unet %dx%d, %d tokens: plans of %s rows", width, height, chunks * spec.text.tokens, rows)

        def plan_of(count: int) -> Plan:
            return self._bound(self._plans.unet(size, chunks, count), self._stepping)

        context = chunks * spec.text.tokens * spec.unet.context_width
        seen = spec.unet.in_channels - spec.unet.out_channels
        kept = ("pooled", "sizes")
        beside = {port.name: port.sized({"rows": 1})[1] for port in ports.inputs("unet", spec) if port.name in kept}
        return PlanNetwork(rows, plan_of, bool(spec.unet.guidance_width), context, seen, beside)

    def decoder(self, shape: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
        factor = self._spec.vae.factor
        plan = self._bound(self._plans.vae_decoder((shape[2] * factor, shape[1] * factor)), self._decoding)

        def run(latents: Tensor) -> Tensor:
            plan.inputs["latents"].copy_(latents)
            plan.enqueue()
            return plan.outputs["picture"]

        return run

    def captured(self) -> None:
        """Keep for the next start what RTX has compiled of the plans that were loaded and run since the last call."""
        for sha256, plan, known in self._new:
            if (data := plan.compiled()) and data != known:
                first_run.remember(key_of(self._device), sha256, data)
        self._new.clear()

    def _bound(self, stored: store.Engine, workspace: Workspace) -> Plan:
        identity, vouched = stored.manifest["identity"], stored.manifest["engine"]
        known = first_run.recall(key_of(self._device), vouched["sha256"])
        engine = self._load(stored, known)
        log.info(
            "%s: a plan of %d MB, with weights of its own, and a workspace of %d MB that others of its stream share",
            identity["network"],
            vouched["bytes"] >> 20,
            engine.workspace >> 20,
        )
        plan = Plan(engine, self._device, workspace)
        self._new.append((vouched["sha256"], plan, known))
        return plan


def _loader(name: str) -> Load:
    """Return how plans of backend `name` are loaded. Errors: BackendError where the library is not here."""
    trt = api(rtx=name == "tensorrt_rtx")
    return lambda stored, known: TensorRtEngine(trt, stored.data, stored.manifest["facts"], known)
