"""The Open Inference Protocol's door, on the gRPC port: inference.GRPCInferenceService."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import grpc

from latentd import __version__
from pipeline.errors import InvalidRequest, LatentdError
from server.doors.calls import Calls, current_caller
from server.doors.oip.answers import failure, final, one_by_one, together
from server.doors.oip.call import Call
from server.doors.oip.infer_request import InferRequest, infer_request
from server.doors.oip.inference import inference_pb2 as pb
from server.doors.oip.models import VERSION, configuration, metadata, named, names_of
from server.doors.oip.statistics import Statistics
from server.doors.oip.stream import Stream
from server.doors.request_id import ID_KEY
from server.service import Accepted, Service
from server.wish import default_size

SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
HEALTH = ("ServerLive", "ServerReady", "ModelReady")  # methods that are answered beside a full house

_EXTENSIONS = ("model_configuration", "statistics", "parameters")
_STATUS = "triton_grpc_error"  # metadata of a client that wants errors on a stream as gRPC's, which end it


class OipServicer:
    """Answers the methods of inference.GRPCInferenceService; each is named as the proto names it.

    `ready` says whether requests are taken.
    """

    def __init__(self, service: Service, calls: Calls, ready: Callable[[], bool]) -> None:
        self._service, self._calls, self._ready = service, calls, ready
        self._statistics: defaultdict[str, Statistics] = defaultdict(Statistics)  # by name, of every model served
        self._live: set[Call] = set()
        self.idle = asyncio.Event()  # no request is under way
        self.idle.set()

    def _begin(self, method: str, context: grpc.aio.ServicerContext, ids: list[str]) -> Call:
        call = Call(self._service, f"{SERVICE.full_name}/{method}", context, ids)
        self._live.add(call)
        self.idle.clear()
        return call

    def _over(self, call: Call, error: BaseException | None = None) -> None:
        call.ended(error)
        self._live.discard(call)
        if not self._live:
            self.idle.set()

    async def ModelInfer(  # noqa: N802
        self, message: pb.ModelInferRequest, context: grpc.aio.ServicerContext
    ) -> pb.ModelInferResponse:
        call = self._begin("ModelInfer", context, _sent_ids(context) or [message.id])
        context.set_trailing_metadata(((ID_KEY, call.id),))
        try:
            request = self._read(message)
            if request.named.decoupled:
                raise InvalidRequest(
                    f"{request.named.name} answers more than once: use ModelStreamInfer, or {request.named.model}",
                    "model",
                )
            answer = await self._together(request, call)
            self._over(call)
        except BaseException as error:
            self._over(call, error)
            raise
        return answer

    async def ModelStreamInfer(  # noqa: N802
        self, requests: AsyncIterator[pb.ModelInferRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        live: set[Call] = set()

        def end(error: BaseException) -> None:
            for call in list(live):
                self._over(call, error)

        def refuse(message: pb.ModelInferRequest, error: LatentdError) -> pb.ModelStreamInferResponse:
            call = self._begin("ModelStreamInfer", context, [message.id] if message.id else _sent_ids(context))
            self._over(call, error)
            return failure(error, message, call.id)

        context.add_done_callback(lambda _: end(asyncio.CancelledError()))  # pyright: ignore[reportArgumentType]
        caller = current_caller()
        stream = Stream(
            lambda message: self._responses(message, context, live),
            refuse,
            lambda: self._calls.of(caller),
            lambda: self._calls.again(context),
        )
        async with contextlib.aclosing(stream.responses(requests)) as responses:
            try:
                async for response in responses:
                    yield response
            except BaseException as error:
                end(error)
                raise

    async def _responses(
        self, message: pb.ModelInferRequest, context: grpc.aio.ServicerContext, live: set[Call]
    ) -> AsyncGenerator[pb.ModelStreamInferResponse]:
        """Yield what a request on a stream is answered with; an error is a response too."""
        call = self._begin("ModelStreamInfer", context, [message.id] if message.id else _sent_ids(context))
        live.add(call)
        try:
            request = self._read(message)
            if request.named.decoupled:
                async with contextlib.aclosing(self._one_by_one(request, call)) as answers:
                    async for answer in answers:
                        yield pb.ModelStreamInferResponse(infer_response=answer)
            else:
                yield pb.ModelStreamInferResponse(infer_response=final(await self._together(request, call), True))
            call.ended()
        except Exception as error:
            call.ended(error)
            if _metadata(context, _STATUS) == ["true"]:
                context.set_trailing_metadata(((ID_KEY, call.id),))
                raise
            yield failure(error, message, call.id)
        except BaseException as error:
            call.ended(error)
            raise
        finally:
            live.discard(call)
            self._over(call)

    def _read(self, message: pb.ModelInferRequest) -> InferRequest:
        self._service.ready()
        name = named(self._service.model_id, message.model_name, message.model_version)
        return infer_request(message, name, self._service.limits)

    async def _accepted(self, request: InferRequest, call: Call) -> list[Accepted]:
        """Submit a request once its previews can be made. No frame that waits for its reader holds the device."""
        with self._service.holding(request.named.model) as device:
            if any(run.request.preview_every for run in request.runs):
                await self._service.previews(device)
            return await call.submit(request, self._statistics[request.named.name], device)

    async def _together(self, request: InferRequest, call: Call) -> pb.ModelInferResponse:
        self._fits_one_message(request)
        accepted = await self._accepted(request, call)
        return await together(request, call, [one.job for one in accepted])

    async def _one_by_one(self, request: InferRequest, call: Call) -> AsyncGenerator[pb.ModelInferResponse]:
        accepted = await self._accepted(request, call)
        async with contextlib.aclosing(one_by_one(request, call, [one.job for one in accepted])) as answers:
            async for answer in answers:
                yield answer

    def _fits_one_message(self, request: InferRequest) -> None:
        device, most = self._service.ready(), self._service.limits.blocking_bytes
        first = request.runs[0].request
        width, height = default_size(device.model, device.sizes)
        size = request.images * (first.width or width) * (first.height or height) * 3
        if size > most:
            raise InvalidRequest(
                f"prompt's length x width x height x 3 is {size} bytes, which may not fit the 4 MiB that gRPC clients "
                f"accept (at most {most}); use ModelStreamInfer with {request.named.model}.stream"
            )

    async def ServerLive(self, message: Any, context: Any) -> pb.ServerLiveResponse:  # noqa: N802
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, message: Any, context: Any) -> pb.ServerReadyResponse:  # noqa: N802
        return pb.ServerReadyResponse(ready=self._ready())

    async def ModelReady(  # noqa: N802
        self, message: pb.ModelReadyRequest, context: Any
    ) -> pb.ModelReadyResponse:
        named(self._service.model_id, message.name, message.version)
        return pb.ModelReadyResponse(ready=self._ready())

    async def ServerMetadata(self, message: Any, context: Any) -> pb.ServerMetadataResponse:  # noqa: N802
        return pb.ServerMetadataResponse(name="latentd", version=__version__, extensions=_EXTENSIONS)

    async def ModelMetadata(  # noqa: N802
        self, message: pb.ModelMetadataRequest, context: Any
    ) -> pb.ModelMetadataResponse:
        return metadata(named(self._service.model_id, message.name, message.version))

    async def ModelConfig(  # noqa: N802
        self, message: pb.ModelConfigRequest, context: Any
    ) -> pb.ModelConfigResponse:
        name = named(self._service.model_id, message.name, message.version)
        return pb.ModelConfigResponse(config=configuration(name, self._service.ready(), self._service.limits))

    async def ModelStatistics(  # noqa: N802
        self, message: pb.ModelStatisticsRequest, context: Any
    ) -> pb.ModelStatisticsResponse:
        model = self._service.model_id
        names = [named(model, message.name, message.version)] if message.name else names_of(model)
        return pb.ModelStatisticsResponse(model_stats=[self._statistics[one.name].message(one.name) for one in names])

    async def RepositoryIndex(  # noqa: N802
        self, message: pb.RepositoryIndexRequest, context: Any
    ) -> pb.RepositoryIndexResponse:
        ready = self._ready()
        if message.ready and not ready:
            return pb.RepositoryIndexResponse()
        state, reason = ("READY", "") if ready else ("UNAVAILABLE", "the server is loading or draining")
        return pb.RepositoryIndexResponse(
            models=[
                pb.RepositoryIndexResponse.ModelIndex(name=name.name, version=VERSION, state=state, reason=reason)
                for name in names_of(self._service.model_id)
            ]
        )


def _metadata(context: grpc.aio.ServicerContext, wanted: str) -> list[str]:
    return [str(value) for key, value in context.invocation_metadata() or () if key == wanted]


def _sent_ids(context: grpc.aio.ServicerContext) -> list[str]:
    return _metadata(context, ID_KEY)
