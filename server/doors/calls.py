"""How many calls are open, whose they are, and how long one may wait for its client: bounds that every method keeps.

gRPC's own limit (maximum_concurrent_rpcs) knows no callers, names no limit and would refuse health too. It ends no call
that nobody reads: a message that waits for a flow-control window waits for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import Message

from server.access.policy import Policy
from server.caller import caller_of
from server.errors import Busy, Stalled
from server.metrics import Metrics

log = logging.getLogger("latentd.door")

_caller: ContextVar[str] = ContextVar("caller")  # whose call this task answers


def _is_news(record: logging.LogRecord) -> bool:
    """Return whether gRPC logs more than that a client left while its answer was on the way, with a traceback."""
    return not (record.exc_info and record.exc_info[0] and record.exc_info[0].__name__ == "ExecuteBatchError")


logging.getLogger("grpc._cython.cygrpc").addFilter(_is_news)

_RETRY = 1.0  # seconds after which a call that was refused is worth another try
_PACE = 32 << 10  # bytes a second: who takes a picture slower than over an old telephone line has left


@dataclass(frozen=True)
class CallBounds:
    calls: int = 1024  # open at once
    of_caller: int = 512
    wait: float = 30.0  # seconds for a message to go or come, and as many more as it takes at _PACE
    message: int = 16 << 20  # bytes of the largest that may come


class Calls:
    """Counts the calls that are open, until gRPC has let go of them, and waits for their clients, but not for ever.

    `noun` names them to who is refused. While `closed` says why, nobody is let in. `policy` names callers, and bounds
    the calls of each.
    """

    def __init__(self, bounds: CallBounds, metrics: Metrics, policy: Policy, noun: str = "calls") -> None:
        self._bounds, self._metrics, self._noun, self._policy = bounds, metrics, noun, policy
        self._wait = bounds.wait
        self._open: Counter[str] = Counter()  # by caller
        self._sending: dict[asyncio.Timeout, int] = {}  # messages that wait for their reader, with their bytes
        self._ending: set[asyncio.Task[None]] = set()  # calls that are answered or given up, until gRPC lets go of them
        self._answers = 0  # of unary calls, that are being sent and have not been given up
        self.answered = asyncio.Event()  # there is none
        self.answered.set()
        self.closed: str | None = None

    async def entered(
        self, context: grpc.aio.ServicerContext, *, keyed: bool = True
    ) -> contextlib.AbstractContextManager[None]:
        """Let a call in; it is counted during the block of what this returns. `current_caller` tells whose it is.

        `keyed`: it needs a key where the policy asks for one. Errors: Unauthenticated; Busy, which the block may raise.
        """
        caller = await self.again(context) if keyed else caller_of(context.peer())
        _caller.set(caller)
        return self.of(caller)

    async def again(self, context: grpc.aio.ServicerContext) -> str:
        """Ask the policy for a request of a call, a further one on a stream too; returns its caller.

        Errors: Unauthenticated; Busy.
        """
        sent = [str(value) for key, value in context.invocation_metadata() or () if key == "authorization"]
        return await self._policy.caller(sent, caller_of(context.peer()))

    @contextlib.contextmanager
    def of(self, caller: str) -> Iterator[None]:
        """Count a call of a caller, by whatever door, during the block. Errors: Busy."""
        self._admit(caller)
        self._open[caller] += 1
        self._metrics.calls_open.inc()
        try:
            yield
        finally:
            self._open[caller] -= 1
            if not self._open[caller]:
                del self._open[caller]
            self._metrics.calls_open.dec()

    def _admit(self, caller: str) -> None:
        bounds, open_now = self._bounds, self._open.total()
        if self.closed:
            self._refuse("descriptors", self.closed)
        if open_now >= bounds.calls:
            self._refuse("calls", f"{open_now} {self._noun} are open; at most {bounds.calls} may be")
        if (callers := self._open[caller]) >= (most := self._policy.calls_of(caller, bounds.of_caller)):
            self._refuse("caller", f"{callers} {self._noun} of {caller} are open; at most {most} of a caller may be")

    def _refuse(self, why: str, sentence: str) -> None:
        self._metrics.call_refused(why)
        raise Busy(sentence, _RETRY)

    async def read(self, context: grpc.aio.ServicerContext) -> Any:
        """Read the only message of a call; grpc.aio.EOF where none comes. Errors: Stalled, after a while."""
        seconds = self._bounds.wait + self._bounds.message / _PACE
        try:
            async with asyncio.timeout(seconds):
                return await context.read()
        except TimeoutError:
            raise Stalled(f"the call's message did not come within {seconds:.0f} s") from None

    async def write(self, context: grpc.aio.ServicerContext, message: Message | bytes, *, first: bool) -> None:
        """Send a message, or one that is written already. Errors: Stalled, after a while.

        The `first` has headers before it. They need no window, and after them gRPC takes a status, at any time.
        """
        async with self._in_time(len(message) if isinstance(message, bytes) else message.ByteSize()):
            if first:
                await context.send_initial_metadata(())
            await context.write(message)

    def answer(self, context: grpc.aio.ServicerContext, answer: bytes, stack: contextlib.ExitStack) -> bytes:
        """Return a unary call's answer, for gRPC to send with headers and status as one; time that meanwhile.

        Sent apart, a server that is killed between them leaves a call whose answer has begun, and which no balancer may
        ask of another server. The call counts until gRPC lets go of it, so `stack`, in which it is, is taken over.
        """
        over = asyncio.Event()
        context.add_done_callback(lambda _: over.set())  # pyright: ignore[reportArgumentType] - as of grpc.py's
        self._answers += 1
        self.answered.clear()
        self._end(self._sent(context, len(answer), over, stack.pop_all()))
        return answer

    async def _sent(
        self, context: grpc.aio.ServicerContext, size: int, over: asyncio.Event, counted: contextlib.ExitStack
    ) -> None:
        with counted:
            try:
                async with self._in_time(size):
                    await over.wait()
            except Stalled as error:
                self._unread(context, error)
            finally:
                self._answers -= 1
                if not self._answers:
                    self.answered.set()
            await over.wait()

    @contextlib.asynccontextmanager
    async def _in_time(self, size: int) -> AsyncIterator[None]:
        """Bound the time in which a message of so many bytes is sent. Errors: Stalled."""
        start = time.monotonic()
        try:
            async with asyncio.timeout(self._wait + size / _PACE) as timeout:
                self._sending[timeout] = size
                try:
                    yield
                finally:
                    del self._sending[timeout]
        except TimeoutError:
            seconds = time.monotonic() - start
            raise Stalled(f"the client did not take a message of {size} bytes within {seconds:.1f} s") from None

    def hurry(self, seconds: float) -> None:
        """Wait `seconds` for readers from now on, where that is less than before: also for what is being sent."""
        if seconds >= self._wait:
            return
        self._wait = seconds
        now = asyncio.get_running_loop().time()
        for timeout, size in self._sending.items():
            until = now + seconds + size / _PACE
            if (when := timeout.when()) is not None and until < when:
                timeout.reschedule(until)

    def give_up(self, context: grpc.aio.ServicerContext, error: Stalled, stack: contextlib.ExitStack) -> None:
        """End a call that nobody reads. It counts until gRPC lets go of it, so `stack`, in which it is, is taken over.

        Its status can only be sent after the message that the client does not take, so nobody else waits for that.
        """
        self._unread(context, error)
        left = stack.pop_all()

        async def end() -> None:
            with left, contextlib.suppress(grpc.aio.BaseError):
                await context.abort(getattr(grpc.StatusCode, error.code), str(error))

        self._end(end())

    def _unread(self, context: grpc.aio.ServicerContext, error: Stalled) -> None:
        self._metrics.calls_unread_total.inc()
        log.warning("%s: %s", caller_of(context.peer()), error)

    def _end(self, end: Coroutine[Any, Any, None]) -> None:
        ending = asyncio.get_running_loop().create_task(end)
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)


def current_caller() -> str:
    """Name the caller of the call that this task answers. Errors: LookupError outside of any."""
    return _caller.get()
