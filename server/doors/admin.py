"""latentd.v1.Admin on the gRPC port: what operators with an admin's key may do to a server that runs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import grpc

from latentd.v1 import admin_pb2 as pb
from server.access.policy import Policy
from server.doors.calls import current_caller
from server.models.succession import Progress, Succession
from server.service import Service

SERVICE = pb.DESCRIPTOR.services_by_name["Admin"]


class AdminServicer:
    """Answers the methods of latentd.v1.Admin; each is named as the proto names it."""

    def __init__(self, service: Service, succession: Succession, policy: Policy) -> None:
        self._service, self._succession, self._policy = service, succession, policy

    async def Swap(  # noqa: N802
        self, request: pb.SwapRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.SwapStage]:
        self._policy.check_admin(current_caller())
        async with contextlib.aclosing(self._succession.swap(request.model, request.prediction or "auto")) as stages:
            async for progress in stages:
                yield _stage(progress)

    async def State(  # noqa: N802
        self, request: pb.StateRequest, context: grpc.aio.ServicerContext
    ) -> pb.StateResponse:
        self._policy.check_admin(current_caller())
        model, names = self._service.ready().model, await asyncio.to_thread(lambda: self._succession.names)
        state = pb.StateResponse(model=model.id, weights_digest=model.digest, models=names)
        if (underway := self._succession.underway) is not None:
            state.swapping_to = underway[0]
            state.stage.CopyFrom(_stage(underway[1]))
        return state


def _stage(progress: Progress) -> pb.SwapStage:
    return pb.SwapStage(stage=int(progress.stage), seconds=progress.seconds, left=progress.left)  # type: ignore[arg-type]
