"""A server whose model may be swapped, among checkpoints of a folder, and operators who do so."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc

from engines.choice import Choice
from engines.cuda.backend import CudaBackend
from engines.cuda.kernels import plain_kernels
from engines.model import Model, load
from latentd import AsyncClient
from latentd.events import Event, Image, Queued
from latentd.v1 import admin_pb2 as pb
from latentd.v1.admin_pb2_grpc import AdminStub
from pipeline.checkpoint.opened import open_checkpoint
from pipeline.tokenizer import ClipTokenizer
from server.app import Server
from server.settings import Settings
from tests.support.keys import entry, token, write_keys
from tests.support.serving import address

Make = Callable[[Settings], Model]


def openvino(settings: Settings) -> Model:
    return load(open_checkpoint(settings.model, settings.prediction), Choice("openvino", "f32", threads=2))


def host(settings: Settings) -> Model:
    """The host's stepper over torch: loaded in a moment, as nothing is compiled."""
    return load(open_checkpoint(settings.model, settings.prediction), Choice("torch", "f32", threads=1, device="cpu"))


def cuda(settings: Settings) -> Model:
    """The CUDA backend over CPU tensors, with exact pixels."""
    checkpoint = open_checkpoint(settings.model, settings.prediction)
    backend = CudaBackend(checkpoint, "f32", pixels="exact", device="cpu", kernels=plain_kernels())
    tokenizer = ClipTokenizer(checkpoint.source, checkpoint.spec.text)
    return Model(checkpoint, tokenizer, backend, checkpoint.weights.digest())


@contextlib.asynccontextmanager
async def administered(folder: Path, make: Make, first: str = "a", **settings: Any) -> AsyncIterator[Server]:
    """Serve a model of a folder in this event loop; the key `op` is an admin's, `user` is not."""
    keys = write_keys(folder.parent / "keys.yaml", entry("op", admin=True), entry("user"))
    ports: dict[str, Any] = {"grpc_port": 0, "metrics_port": None, "http_port": None}
    given = {"model": folder / first, "admin": True, "admin_models": folder, "keys": keys, **ports, **settings}
    server = Server(Settings(**given))
    try:
        await server.open()
        await server.load(make)
        yield server
    finally:
        await server.close(0)


class Operator:
    """Calls latentd.v1.Admin with a key."""

    def __init__(self, server: Server, name: str = "op") -> None:
        self._channel = grpc.aio.insecure_channel(address(server))
        self._stub: Any = AdminStub(self._channel)
        self._key = (("authorization", f"Bearer {token(name)}"),)

    async def __aenter__(self) -> Operator:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()

    def call(self, model: str, **fields: Any) -> Any:
        """A swap's call, whose stages are read from it."""
        return self._stub.Swap(pb.SwapRequest(model=model, **fields), metadata=self._key)

    async def swap(self, model: str, **fields: Any) -> list[int]:
        """Swap; the stages that it went through. Errors: AioRpcError."""
        return [stage.stage async for stage in self.call(model, **fields)]

    async def refused(self, model: str, **fields: Any) -> tuple[str, str]:
        """The code and the sentence with which a swap is refused."""
        try:
            raise AssertionError(await self.swap(model, **fields))
        except grpc.aio.AioRpcError as error:
            return error.code().name, error.details() or ""

    async def state(self) -> pb.StateResponse:
        return await self._stub.State(pb.StateRequest(), metadata=self._key)


async def drawn(client: AsyncClient, **fields: Any) -> tuple[str, bytes]:
    """A picture's file, and the id of the model that drew it."""
    told: dict[str, Any] = {}

    def note(event: Event) -> None:
        if isinstance(event, Queued):
            told["model"] = event.model
        elif isinstance(event, Image):
            told["picture"] = event.data

    await client.generate(fields.pop("prompt", "a red apple"), on_event=note, **fields)
    return told["model"], told["picture"]
