"""AsyncClient: a latentd server from asyncio."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any, Unpack

import grpc
import grpc.aio

from latentd.access import Access, shown
from latentd.channel import channel_options, server_address
from latentd.errors import ServerError, closed_error, server_error
from latentd.events import Event, Gathering, event_of
from latentd.picture import Picture
from latentd.request import Options, Upload, build_ranking, check_timeout, request_of
from latentd.v1 import images_pb2 as pb
from latentd.v1.images_pb2_grpc import ImagesStub


class AsyncClient:
    """Serves asyncio, with Client's arguments, results and errors; used within one event loop.

    Cancelling the task that waits for a call cancels the call on the server.
    """

    def __init__(self, address: str | None = None, **access: Unpack[Access]) -> None:
        self.address = server_address(address)
        self._shown = shown(access)
        self._channel: grpc.aio.Channel | None = None
        self._closed = False

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls that still run are cancelled."""
        self._closed = True
        if self._channel is not None:
            await self._channel.close()

    async def generate(
        self,
        prompt: str,
        *,
        timeout: float | None = None,
        on_event: Callable[[Event], None] | None = None,
        **options: Unpack[Options],
    ) -> list[Picture]:
        """Draw the pictures of one prompt, in order of index; see Client.generate."""
        options.setdefault("progress", on_event is not None)
        gathering = Gathering()
        try:
            async with aclosing(self.stream(prompt, timeout=timeout, **options)) as events:
                async for event in events:
                    gathering.add(event)
                    if on_event:
                        on_event(event)
        except ServerError as error:
            error.pictures = gathering.pictures()
            raise
        return gathering.pictures()

    def stream(
        self, prompt: str, *, timeout: float | None = None, **options: Unpack[Options]
    ) -> AsyncGenerator[Event, None]:
        """Yield the events of one prompt as they arrive; `aclose` cancels the request. See Client.stream."""
        return self._events(request_of(prompt, options), check_timeout(timeout))

    async def rank(
        self, pictures: Sequence[Upload], texts: Sequence[str], *, model: str = "", timeout: float | None = None
    ) -> list[list[float]]:
        """Score each picture against each text; see Client.rank."""
        request, timeout = build_ranking(pictures, texts, model), check_timeout(timeout)
        try:
            return [
                list(row.texts)
                for row in (await self._images().Rank(request, timeout=timeout, metadata=self._shown.metadata)).pictures
            ]
        except grpc.RpcError as error:
            raise server_error(error, self.address) from None

    async def models(self, *, timeout: float | None = 10) -> list[pb.Model]:
        """Return the models served, with their sizes, samplers, defaults and limits."""
        timeout = check_timeout(timeout)
        try:
            return list(
                (
                    await self._images().ListModels(
                        pb.ListModelsRequest(), timeout=timeout, metadata=self._shown.metadata
                    )
                ).models
            )
        except grpc.RpcError as error:
            raise server_error(error, self.address) from None

    async def _events(self, request: pb.GenerateRequest, timeout: float | None) -> AsyncGenerator[Event, None]:
        call = self._images().Generate(request, timeout=timeout, metadata=self._shown.metadata)
        try:
            async for message in call:
                if (event := event_of(message)) is not None:
                    yield event
        except grpc.RpcError as error:
            raise server_error(error, self.address) from None
        finally:
            call.cancel()  # nothing to cancel after the last event

    def _images(self) -> Any:
        if self._closed:
            raise closed_error()
        # Not in __init__: a channel belongs to the event loop that runs when it is made.
        if self._channel is None:
            tls, options = self._shown.channel, channel_options(self.address)
            if tls is None:
                self._channel = grpc.aio.insecure_channel(self.address, options=options)
            else:
                self._channel = grpc.aio.secure_channel(self.address, tls, options=options)
        return ImagesStub(self._channel)
