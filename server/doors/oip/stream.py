"""One stream of requests, which are answered side by side; each waits until the client has taken its answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

from pipeline.errors import LatentdError
from server.doors.oip.inference import inference_pb2 as pb
from server.errors import Busy, Unauthenticated

Response = pb.ModelStreamInferResponse
Slot = Callable[[], contextlib.AbstractContextManager[None]]


class Stream:
    """Holds the requests of one stream that are under way.

    `answer` yields a request's responses, `refuse` makes that of one which finds no place. The stream itself counts as
    one call, and so has a place for one request; each further one at a time takes a `slot`. `again` asks whether a
    further one may come at all: a key may have been revoked, or ask too often.
    """

    def __init__(
        self,
        answer: Callable[[pb.ModelInferRequest], AsyncGenerator[Response]],
        refuse: Callable[[pb.ModelInferRequest, LatentdError], Response],
        slot: Slot,
        again: Callable[[], Awaitable[object]],
    ) -> None:
        self._answer, self._refuse, self._slot, self._again = answer, refuse, slot, again
        self._running: set[asyncio.Task[None]] = set()
        # What comes next, and what is set once it was taken. An exception ends the stream, None as well.
        self._next: asyncio.Queue[tuple[Response | Exception | None, asyncio.Event]] = asyncio.Queue(1)

    async def responses(self, requests: AsyncIterator[pb.ModelInferRequest]) -> AsyncGenerator[Response]:
        """Yield responses until the client has said all and heard all. Errors: those that end the stream."""
        reading = asyncio.create_task(self._read(requests))
        try:
            while True:
                response, taken = await self._next.get()
                if response is None:
                    return
                if isinstance(response, Exception):
                    raise response
                yield response
                taken.set()
        finally:
            tasks = [reading, *self._running]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, requests: AsyncIterator[pb.ModelInferRequest]) -> None:
        end, first = None, True
        try:
            async for request in requests:
                with contextlib.ExitStack() as stack:
                    try:
                        if not first:
                            await self._again()
                        first = False
                        if self._running:
                            stack.enter_context(self._slot())
                    except (Busy, Unauthenticated) as error:
                        await self._send(self._refuse(request, error))  # who sends too many waits with the next
                        continue
                    task = asyncio.create_task(self._run(request, stack.pop_all()))
                self._running.add(task)
                task.add_done_callback(self._running.discard)
            while self._running:
                await asyncio.wait(self._running)
        except Exception as error:
            end = error
        await self._send(end)

    async def _run(self, request: pb.ModelInferRequest, slot: contextlib.ExitStack) -> None:
        try:
            with slot:
                async with contextlib.aclosing(self._answer(request)) as responses:
                    async for response in responses:
                        await self._send(response)
        except Exception as error:
            await self._send(error)

    async def _send(self, response: Response | Exception | None) -> None:
        taken = asyncio.Event()
        await self._next.put((response, taken))
        await taken.wait()
