"""Client: a latentd server from plain Python."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import Any, Unpack

import grpc

from latentd.access import Access, shown
from latentd.channel import channel_options, server_address
from latentd.errors import ServerError, closed_error, server_error
from latentd.events import Event, Gathering, event_of
from latentd.picture import Picture
from latentd.request import Options, Upload, build_ranking, check_timeout, request_of
from latentd.v1 import images_pb2 as pb
from latentd.v1.images_pb2_grpc import ImagesStub


class Client:
    """Holds a connection to one server, made on the first call; threads may share it.

    address: `host:port`, or a host whose server has port 8001; without it $LATENTD_SERVER, else 127.0.0.1:8001.
    access: key, tls, tls_ca, tls_client_cert, tls_client_key; latentd.access.Access says what each means.
    Every call raises ServerError when the server refuses, fails or does not answer, and when this client is closed.
    """

    def __init__(self, address: str | None = None, **access: Unpack[Access]) -> None:
        self.address = server_address(address)
        self._shown = shown(access)
        tls, options = self._shown.channel, channel_options(self.address)
        if tls is None:
            self._channel = grpc.insecure_channel(self.address, options=options)
        else:
            self._channel = grpc.secure_channel(self.address, tls, options=options)
        self._stub: Any = ImagesStub(self._channel)
        self._closed = False

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; calls that still run are cancelled."""
        self._closed = True
        self._channel.close()

    def generate(
        self,
        prompt: str,
        *,
        timeout: float | None = None,
        on_event: Callable[[Event], None] | None = None,
        **options: Unpack[Options],
    ) -> list[Picture]:
        """Draw the pictures of one prompt, in order of index.

        options: negative_prompt, width, height, steps, guidance, sampler, seed, images, format, preview_every,
        priority, model, long_prompt, prompt_weights, clip_skip, guidance_start, guidance_end, init_image, strength,
        mask, fit, style_image, style_weight, keep, original_size, crop, target_size, quality, progress;
        latentd.request.Options says what each means.
        timeout: seconds for the whole request. An empty prompt is allowed.
        on_event sees each event as it arrives; an exception it raises, and Ctrl-C, cancel the request.
        Raises ServerError (its `pictures` are those that had arrived), ValueError, TypeError, and OSError for a path.
        """
        options.setdefault("progress", on_event is not None)
        gathering = Gathering()
        try:
            with closing(self.stream(prompt, timeout=timeout, **options)) as events:
                for event in events:
                    gathering.add(event)
                    if on_event:
                        on_event(event)
        except ServerError as error:
            error.pictures = gathering.pictures()
            raise
        return gathering.pictures()

    def stream(
        self, prompt: str, *, timeout: float | None = None, **options: Unpack[Options]
    ) -> Generator[Event, None, None]:
        """Yield the events of one prompt as they arrive; the request is sent when the first is asked for.

        Closing the iterator, or letting go of it, cancels the request. Arguments and errors as for `generate`.
        """
        return self._events(request_of(prompt, options), check_timeout(timeout))

    def rank(
        self, pictures: Sequence[Upload], texts: Sequence[str], *, model: str = "", timeout: float | None = None
    ) -> list[list[float]]:
        """Score each picture against each text, by the server's judge: the higher, the nearer. [pictures][texts].

        pictures: files' bytes, paths, or pictures of PIL's; 1 to 8. texts: 1 to 16. Errors as for `generate`.
        """
        request, timeout = build_ranking(pictures, texts, model), check_timeout(timeout)
        try:
            return [
                list(row.texts)
                for row in self._images().Rank(request, timeout=timeout, metadata=self._shown.metadata).pictures
            ]
        except grpc.RpcError as error:
            raise server_error(error, self.address) from None

    def models(self, *, timeout: float | None = 10) -> list[pb.Model]:
        """Return the models served, with their sizes, samplers, defaults and limits."""
        timeout = check_timeout(timeout)
        try:
            return list(
                self._images().ListModels(pb.ListModelsRequest(), timeout=timeout, metadata=self._shown.metadata).models
            )
        except grpc.RpcError as error:
            raise server_error(error, self.address) from None

    def _events(self, request: pb.GenerateRequest, timeout: float | None) -> Generator[Event, None, None]:
        call = self._images().Generate(request, timeout=timeout, metadata=self._shown.metadata)
        try:
            for message in call:
                if (event := event_of(message)) is not None:
                    yield event
        except grpc.RpcError as error:
            raise server_error(error, self.address) from None
        finally:
            call.cancel()  # nothing to cancel after the last event

    def _images(self) -> Any:
        if self._closed:
            raise closed_error()
        return self._stub
