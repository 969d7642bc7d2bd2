"""The gRPC door: latentd.v1.Images, the Open Inference Protocol, health and reflection on one port."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import grpc
from grpc_health.v1 import health_pb2

from latentd.v1 import images_pb2 as pb
from pipeline.errors import InvalidRequest, LatentdError
from server.access.certificates import Certificates
from server.access.policy import Policy
from server.address import joined, refuse_taken
from server.device.loop import Device
from server.doors.admin import SERVICE as ADMIN
from server.doors.admin import AdminServicer
from server.doors.calls import CallBounds, Calls, current_caller
from server.doors.credentials import server_credentials
from server.doors.handlers import handlers
from server.doors.health import HealthServicer
from server.doors.messages import (
    FORMATS,
    event_message,
    image_request,
    model_message,
    queued_message,
    rank_message,
    response_message,
)
from server.doors.oip.door import HEALTH as OIP_HEALTH
from server.doors.oip.door import SERVICE as OIP
from server.doors.oip.door import OipServicer
from server.doors.reflection import reflection_handlers
from server.doors.request_id import ID_KEY, request_id
from server.doors.rpc import traced
from server.errors import UnknownFormat
from server.job import Job
from server.mailbox import collect
from server.request import ImageRequest
from server.service import Accepted, Service
from server.wish import default_size

log = logging.getLogger("latentd.door")

SERVICE, HEALTH = "latentd.v1.Images", "grpc.health.v1.Health"
LIVE = "live"  # in health, what serves from the first answer to the last: for a probe that may end the process

OPTIONS = [
    # gRPC's default lets a second server share the port and steal half of the requests, silently.
    ("grpc.so_reuseport", 0),
    # A client that vanished without closing its connection is noticed within half a minute.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    # Whoever connects and says nothing; gRPC's default are two minutes.
    ("grpc.server_handshake_timeout_ms", 10_000),
]

# Checks of health at once, so that they are answered beside a full house; each takes a millisecond.
_CHECKS, _CHECKS_OF_CALLER = 128, 32
_FOR_EVER = 2**31 - 1  # gRPC's own word for it


@dataclass(frozen=True)
class ConnectionBounds:
    connections: int = 4096  # at once; one more is closed as it comes
    streams: int = 512  # calls of a connection; a client's library waits with more
    idle: float = 60.0  # seconds without a call; a client's library connects again when it needs to

    def options(self, message: int) -> list[tuple[str, int]]:
        """Return gRPC's options for these, and for messages of so many bytes."""
        return [
            ("grpc.max_receive_message_length", message),
            ("grpc.max_allowed_incoming_connections", self.connections),
            ("grpc.max_concurrent_streams", self.streams),
            ("grpc.max_connection_idle_ms", round(1000 * self.idle) or _FOR_EVER),
        ]


class GrpcDoor:
    """Listens from `open` on, answers health from `start` on, takes requests once the service is ready."""

    def __init__(
        self,
        service: Service,
        bounds: CallBounds,
        connections: ConnectionBounds,
        policy: Policy,
        admin: AdminServicer | None = None,
    ) -> None:
        self._images = ImagesServicer(service)
        self.calls = Calls(bounds, service.metrics, policy)
        few = replace(bounds, calls=_CHECKS, of_caller=_CHECKS_OF_CALLER)
        self.checks = checks = Calls(few, service.metrics, Policy(), "checks of health")
        self._server = grpc.aio.server(options=[*OPTIONS, *connections.options(bounds.message)])
        self.health = HealthServicer()
        self._oip = OipServicer(service, self.calls, self.health.serving)
        listed = (SERVICE, OIP.full_name, HEALTH, *([ADMIN.full_name] if admin else []))
        self._server.add_generic_rpc_handlers(
            (
                handlers(pb.DESCRIPTOR.services_by_name["Images"], self._images, self.calls),
                handlers(OIP, self._oip, self.calls, apart=dict.fromkeys(OIP_HEALTH, checks)),
                handlers(
                    health_pb2.DESCRIPTOR.services_by_name["Health"],
                    self.health,
                    self.calls,
                    apart={"Check": checks, "List": checks},
                    keyed=False,
                ),
                *reflection_handlers(listed, self.calls),
                *([handlers(ADMIN, admin, self.calls)] if admin else []),
            )
        )

    def open(self, host: str, port: int, certificates: Certificates | None = None) -> int:
        """Bind, with TLS if there are `certificates`; returns the port.

        Errors: LatentdError when it is taken, by another latentd too.
        """
        refuse_taken("grpc", host, port)
        try:
            if certificates is not None:
                return self._server.add_secure_port(joined(host, port), server_credentials(certificates))
            return self._server.add_insecure_port(joined(host, port))
        except RuntimeError as error:
            raise LatentdError(f"grpc port {joined(host, port)} cannot be opened: {error}") from None

    async def start(self) -> None:
        self.not_serving()
        self.health.set(health_pb2.HealthCheckResponse.SERVING, LIVE)
        await self._server.start()

    def serving(self) -> None:
        self.health.set(health_pb2.HealthCheckResponse.SERVING, "", SERVICE, OIP.full_name)

    def not_serving(self) -> None:
        self.health.set(health_pb2.HealthCheckResponse.NOT_SERVING, "", SERVICE, OIP.full_name)

    async def drain(self, grace: float) -> None:
        """Give requests that run `grace` seconds. Health answers meanwhile.

        gRPC's own grace waits for everybody, and who watches health stays for ever. Who reads nothing has a third.
        """
        self.calls.hurry(grace / 3)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle(), grace)

    async def close(self, farewell: float) -> None:
        """Close the door. Whoever is still there has `farewell` seconds to hear why, then gRPC cancels the call."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle(), farewell)
        await self._server.stop(farewell)

    async def _idle(self) -> None:
        for servicer in (self._images, self._oip):
            await servicer.idle.wait()
        await self.calls.answered.wait()  # by then no request is let in that could be answered after this


class ImagesServicer:
    """Answers the methods of latentd.v1.Images; each is named as the proto names it."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._live = 0
        self.idle = asyncio.Event()  # no request is under way
        self.idle.set()

    def _call(self, method: str, context: grpc.aio.ServicerContext) -> _Call:
        call = _Call(self._service, f"{SERVICE}/{method}", context)
        self._live += 1
        self.idle.clear()
        # The stub asks for an instance of a class that does not exist.
        context.add_done_callback(lambda _: self._over(call))  # pyright: ignore[reportArgumentType]
        return call

    def _over(self, call: _Call) -> None:
        """End a call, however it ended: where the client left while a message was on its way, no method hears of it."""
        call.ended(asyncio.CancelledError())
        if call.over:
            return
        call.over = True
        self._live -= 1
        if not self._live:
            self.idle.set()

    async def Generate(  # noqa: N802
        self, message: pb.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.GenerateEvent | bytes]:
        call = self._call("Generate", context)
        try:
            request = image_request(message)
            accepted = await self._accepted(request, call)
            yield pb.GenerateEvent(queued=queued_message(accepted))
            async for event in self._service.events(accepted.job):
                yield event_message(event, accepted.job)
            call.ended()
        except BaseException as error:
            call.ended(error)
            raise

    async def _accepted(self, request: ImageRequest, call: _Call) -> Accepted:
        """Submit a request once its previews can be made. No frame that waits for its reader holds the device."""
        with self._service.holding(request.model) as device:
            if request.preview_every:
                await self._service.previews(device)
            return await call.submit(request, device)

    async def GenerateBlocking(  # noqa: N802
        self, message: pb.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> bytes:
        call = self._call("GenerateBlocking", context)
        try:
            request = replace(image_request(message), preview_every=None, progress=False)
            self._fits_one_message(request)
            accepted = await call.submit(request)
            images, done = await collect(self._service.events(accepted.job))
            call.ended()
        except BaseException as error:
            call.ended(error)
            raise
        finally:
            self._over(call)  # what is left is the answer's way (Calls.answer)
        return response_message(accepted, images, done)

    async def Rank(  # noqa: N802
        self, message: pb.RankRequest, context: grpc.aio.ServicerContext
    ) -> pb.RankResponse:
        call = self._call("Rank", context)
        try:
            model = message.model or None
            ranks = await self._service.rank(current_caller(), model, message.pictures, message.texts)
            call.ended()
        except BaseException as error:
            call.ended(error)
            raise
        finally:
            self._over(call)
        return rank_message(ranks)

    async def ListModels(  # noqa: N802
        self, request: pb.ListModelsRequest, context: grpc.aio.ServicerContext
    ) -> pb.ListModelsResponse:
        loras = await self._service.loras()
        return pb.ListModelsResponse(models=[model_message(self._service.ready(), self._service.limits, loras)])

    def _fits_one_message(self, request: ImageRequest) -> None:
        device, most = self._service.ready(), self._service.limits.blocking_bytes
        images = min(1 if request.images is None else request.images, request.keep or most)
        width, height = default_size(device.model, device.sizes)
        width, height = request.width or width, request.height or height
        if images * width * height * 3 > most:
            raise InvalidRequest(
                f"images x width x height x 3 is {images * width * height * 3} bytes, which may not fit the 4 MiB "
                f"that gRPC clients accept (at most {most}); use Generate, which streams"
            )


class _Call:
    """Holds one call's id, clock and end."""

    def __init__(self, service: Service, method: str, context: grpc.aio.ServicerContext) -> None:
        self._service, self._context = service, context
        self._started = time.monotonic()
        self._job: Job | None = None
        self._reported = False
        self.over = False  # and not counted any more
        self.id = request_id(str(value) for key, value in context.invocation_metadata() or () if key == ID_KEY)
        self.id = traced(service, self.id, method, context, self._started)
        context.set_trailing_metadata(((ID_KEY, self.id),))

    async def submit(self, request: ImageRequest, device: Device | None = None) -> Accepted:
        """Submit the call's request. `device`, and errors: those of Service.submit."""
        try:
            left = self._context.time_remaining()
            caller = current_caller()
            accepted = await self._service.submit(request, self.id, left, self._started, caller, device)
        except UnknownFormat:  # here a format is a number
            raise InvalidRequest(f"format is {request.format}; it must be one of 0 to {max(FORMATS)}") from None
        self._job = accepted.job
        return accepted

    def ended(self, error: BaseException | None = None) -> None:
        """Report the call's end, once, and leave its job not running."""
        if self._reported:
            return
        self._reported = True
        self._service.ended("grpc", error, self._job, self.id, self._started, self._context.time_remaining())
        self._job = None  # gRPC's context and what it calls back hold each other
