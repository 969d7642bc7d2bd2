"""OpenVINO on the CPU: static one-row engines, rows as concurrent calls on a fixed number of streams.

On a CPU a batch gains nothing at real sizes, and each compiled bucket costs another copy of the weights. So there
is one engine of one row, and each row of a denoiser is an inference request bound to its slice of the fixed
buffers: nothing is copied, and a row's bits cannot depend on its company. They do depend on the number of
streams, which is therefore chosen once a model and machine, by measurement, and remembered for the device.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from engines import building, cache, devices, disk, store
from engines.apart import ApartError, NotBegun
from engines.artifact import Artifact
from engines.backend import F32, BackendError, DeviceError
from engines.builder import Order
from engines.builders import BUILDERS
from engines.building import Say, apart_from
from engines.clock import Clock
from engines.host import HostBackend
from engines.openvino_build import OpenVinoBuilder
from engines.sealed import Damaged
from engines.table import title

log = logging.getLogger("latentd.cache")

# Bytes of a network's weights, as they are stored. OpenVINO holds Python's lock while it hands over an engine's bytes,
# 1.7 to 3 s of 420 MB of these (2026-11-28, two busy cores of a Xeon with AMX): of 32 MiB a quarter second at most. A
# process of its own costs half a second to import OpenVINO, two on those cores: with one for each of the demo model's
# networks, of 5 to 14 MB, its first start took 21 s instead of 14.
_SMALL = 32 << 20


class OpenVinoBackend(HostBackend):
    """The engines of one artifact, as OpenVinoBuilder compiles them."""

    name = "openvino"
    # A Core compiles and imports for any thread, without Python's lock, and requests of other engines run meanwhile. A
    # size's streams are chosen with its first denoiser; a further one only adds its own key to `_compiled`.
    makes_beside = True

    def __init__(self, artifact: Artifact, precision: str = "auto", threads: int | None = None) -> None:
        self.spec = artifact.spec
        self._artifact = artifact
        self._builder = OpenVinoBuilder(artifact, precision=precision, threads=threads)
        self.precision = self._builder.precision
        self._compiled: dict[tuple[str, int], ov.CompiledModel] = {}
        self._streams: dict[tuple[int, int], int] = {}
        self._decoders: dict[tuple[int, ...], ov.InferRequest] = {}
        maker = replace(BUILDERS[self.name], options={"threads": self._builder.threads})
        self._apart = apart_from(artifact, maker, self._builder.target, self.precision)
        self._unkept: set[str] = set()  # engines that the store could not take
        self._encoder = self._request(self._builder.text_encoder())

    def encode(self, ids: NDArray[np.int64], skip: int = 0) -> F32:
        self._infer(self._encoder, ids[None])
        if skip:
            return self._encoder.get_output_tensor(1).data[0, skip - 1].copy()
        return self._encoder.get_output_tensor(0).data[0].copy()

    def decode(self, latents: F32) -> F32:
        if latents.shape not in self._decoders:
            self._decoders[latents.shape] = self._request(self._builder.vae_decoder(*latents.shape))
        decoder = self._decoders[latents.shape]
        self._infer(decoder, latents[None])
        return decoder.get_output_tensor(0).data[0].copy()

    def denoiser(self, width: int, height: int, rows: int, chunks: int = 1) -> OpenVinoDenoiser:
        size = width, height
        if size not in self._streams:
            self._streams[size] = self._choose_streams(width, height)
        return self._bind(width, height, rows, self._streams[size], chunks)

    def making(self, width: int, height: int, chunks: int) -> float | None:
        """See Backend.making: what the build of its engine takes by earlier ones; reading one is taken for nothing."""
        order = self._builder.unet(width, height, chunks)
        if store.place(self._builder.identity(order)).is_dir():
            return 0.0
        return Clock(self._artifact, self._builder).seconds(order)

    def _bind(self, width: int, height: int, rows: int, streams: int, chunks: int = 1) -> OpenVinoDenoiser:
        return OpenVinoDenoiser(self._engine(self._builder.unet(width, height, chunks), streams), rows)

    def _choose_streams(self, width: int, height: int) -> int:
        """One stream has the lowest latency of a row, several share the cores better; what wins is the machine's.

        A guided request alone (two rows) and four of them together weigh equally.
        """
        what = {"what": "streams", "size": [width, height], **self.identity()}
        if known := devices.recall(devices.this_cpu(), what):
            return int(known)
        denoisers = {}
        for streams in sorted({1, min(2, self._builder.threads), min(4, self._builder.threads)}):
            denoisers[streams] = denoiser = self._bind(width, height, 8, streams)
            denoiser.samples[:], denoiser.contexts[:], denoiser.timesteps[:] = 0.1, 0.1, 500
            denoiser.run([0])
        cost = _costs(denoisers)
        chosen = min(cost, key=lambda streams: cost[streams])
        chosen = int(devices.settle(devices.this_cpu(), what, chosen))
        order = self._builder.unet(width, height)
        for loser in cost.keys() - {chosen}:  # each holds its own copy of the weights
            del self._compiled[_name(order), loser]
        return chosen

    def _request(self, order: Order) -> ov.InferRequest:
        return self._engine(order, streams=1).create_infer_request()

    def _engine(self, order: Order, streams: int) -> ov.CompiledModel:
        """From memory, from the store, or compiled now and kept; what is damaged is compiled again."""
        own = _name(order), streams
        if own not in self._compiled:
            self._compiled[own] = self._load(order, streams) or self._made(order, streams)
        return self._compiled[own]

    def _made(self, order: Order, streams: int) -> ov.CompiledModel:
        """Built into the store as `make engines` does it, and read from there; compiled here where it cannot be kept.

        Errors: BackendError, also for a compiler that took its process down: it would do the same to this one.
        """
        clock, made = Clock(self._artifact, self._builder), list[ov.CompiledModel]()

        def compile(order: Order, out: Path, new: cache.Fresh, tick: Callable[[], None], say: Say) -> dict[str, Any]:
            if self._artifact.weight_bytes(order.network) > _SMALL:
                say(f"building{clock.left([order])}")
                try:
                    return self._apart(order, out, new, tick, say)
                except NotBegun as error:
                    log.warning("%s is compiled where it is served: %s", title(order), error)
            made.append(self._builder.compiled(order, streams))
            return self._builder.write(made[0], out)

        def say(line: str) -> None:
            log.info("%s: %s", title(order), line)

        try:
            if _name(order) not in self._unkept:
                building.build(self._artifact, self._builder, order, compile, clock, say)
        except (disk.DiskError, ApartError) as error:
            if isinstance(error, ApartError) and not error.final:
                raise BackendError(f"{title(order)} was not built: {error}") from error
            self._unkept.add(_name(order))
            log.warning("engine not cached, the next start compiles it again: %s", error)
        return made[0] if made else self._load(order, streams) or self._builder.compiled(order, streams)

    def _load(self, order: Order, streams: int) -> ov.CompiledModel | None:
        try:
            engine = store.load(self._builder.identity(order))
        except Damaged as error:
            log.warning("%s; building it again", error)
            return None
        return engine and self._builder.imported(engine, streams, order)

    def identity(self) -> dict[str, Any]:
        """What every engine's bits depend on, whatever its network and shapes."""
        return self._builder.common()

    def identities(self, width: int, height: int) -> dict[str, dict[str, Any]]:
        """The engines that pictures of this size use, by network, as the store knows them."""
        return {order.network: self._builder.identity(order) for order in self._builder.orders([1], [(width, height)])}

    @staticmethod
    def _infer(request: ov.InferRequest, value: NDArray[Any]) -> None:
        try:
            request.set_input_tensor(ov.Tensor(np.ascontiguousarray(value)))
            request.infer()
        except RuntimeError as error:
            raise DeviceError(f"openvino failed: {error}") from error


def _name(order: Order) -> str:
    return json.dumps([order.network, order.shapes])


class OpenVinoDenoiser:
    """Fixed buffers; row r is one inference request bound to their r-th slices."""

    def __init__(self, engine: ov.CompiledModel, rows: int) -> None:
        def buffer(port: ov.ConstOutput) -> F32:
            return np.zeros((rows, *list(port.shape)[1:]), np.float32)

        self.samples, self.timesteps = buffer(engine.input("sample")), buffer(engine.input("timestep"))
        self.contexts, self.outputs = buffer(engine.input("context")), buffer(engine.output(0))
        self.guidance = np.ones(rows, np.float32)
        self._inputs = {"sample": self.samples, "timestep": self.timesteps, "context": self.contexts}
        if any("guidance" in port.names for port in engine.inputs):
            self._inputs["guidance"] = self.guidance
        self._requests = [self._bound(engine, slice(row, row + 1)) for row in range(rows)]

    def _bound(self, engine: ov.CompiledModel, own: slice) -> ov.InferRequest:
        request = engine.create_infer_request()
        for name, buffer in self._inputs.items():
            request.set_tensor(name, ov.Tensor(buffer[own], shared_memory=True))
        request.set_output_tensor(ov.Tensor(self.outputs[own], shared_memory=True))
        return request

    def run(self, rows: Sequence[int]) -> None:
        """See Denoiser.run. All are started before the first is awaited: the streams share them out."""
        try:
            for row in rows:
                self._requests[row].start_async()
            for row in rows:
                self._requests[row].wait()
        except RuntimeError as error:
            raise DeviceError(f"openvino failed: {error}") from error


def _costs(denoisers: dict[int, OpenVinoDenoiser]) -> dict[int, float]:
    """For each number of streams the best time of two rows times the best of eight, in seconds squared.

    In turn, a few seconds' worth and at least twice: a machine that is busy for a while slows all of them alike. One
    after the other, a busy moment once chose one stream, for good, where two are half as fast again.
    """
    best = {(streams, rows): float("inf") for streams in denoisers for rows in (2, 8)}
    begin = time.perf_counter()
    for turn in range(40):
        for streams, rows in best:
            start = time.perf_counter()
            denoisers[streams].run(range(rows))
            best[streams, rows] = min(best[streams, rows], time.perf_counter() - start)
        if turn and time.perf_counter() - begin > 2.0:
            break
    return {streams: best[streams, 2] * best[streams, 8] for streams in denoisers}
