"""The server: bind, load, serve, drain."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import os
import signal
import sys
import time
from collections.abc import Callable

from engines.choice import Choice
from engines.machine.cores import available_cores
from engines.machine.memory_limit import available_memory
from engines.model import Beside, Model, load, on_gpu
from engines.process.exporting import stop_exports
from pipeline.checkpoint.opened import model_id, open_checkpoint
from server.address import is_loopback, joined
from server.batching.admission import Admission
from server.descriptors import Descriptors, connections, raise_limit
from server.device.loop import Device
from server.device.watchdog import watch
from server.doors.asgi import AsgiServer, Bounds
from server.doors.calls import CallBounds
from server.doors.grpc import ConnectionBounds, GrpcDoor
from server.doors.http.door import HttpDoor
from server.limits import Limits
from server.metrics import Metrics
from server.service import Service
from server.settings import Settings, SettingsError
from server.tracing.chosen import tracing_of

log = logging.getLogger("latentd.server")

FAREWELL = 0.5  # seconds for what is still on the wire at the end
_MOST_HTTP = 1024  # connections; a browser has six
_FOR_EVER = 10**9  # seconds
_TRACES = 2.0  # seconds that the collector of traces has to take the last of them


class Server:
    """Serves one model through its doors. The order of calls is `open`, `load`, `serving`, `close`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        name = model_id(settings.model)
        self.metrics = Metrics(name)
        self.metrics.memory_limit_bytes.set(available_memory() or math.inf)
        limits = Limits(
            settings.max_prompt,
            settings.max_steps,
            settings.max_guidance,
            settings.max_images,
            settings.priority_callers,
        )
        self.service = Service(name, limits, self.metrics)
        self.service.tracing = tracing_of(settings, self.metrics)
        calls = CallBounds(
            settings.max_calls, settings.max_calls_caller, settings.unread_seconds or math.inf, settings.max_message
        )
        descriptors = raise_limit()
        most, scrapers = connections(descriptors)
        pages = 0 if settings.http_port is None else min(_MOST_HTTP, most // 2)
        bounds = ConnectionBounds(
            min(most - pages, settings.max_connections), settings.max_streams, settings.idle_seconds
        )
        self._door = GrpcDoor(self.service, calls, bounds)
        self._http = HttpDoor(
            self.service, self._door.calls, settings.max_message, settings.allow_host, _http_bounds(settings, pages)
        )
        self._descriptors = Descriptors(descriptors, self._scarce)
        ended = functools.partial(self.metrics.connection_ended, "metrics")
        self._scrapes = AsgiServer(self.metrics.app, "metrics", Bounds(connections=scrapers), ended)
        self._died = asyncio.Event()
        self._watching: list[asyncio.Task[None]] = []
        self.grpc_port = 0
        self.http_port: int | None = None  # None: no HTTP
        self.metrics_port: int | None = None  # None: no metrics

    async def open(self) -> None:
        """Bind, and answer health with NOT_SERVING: a taken port is an error before the seconds that a load takes."""
        settings = self.settings
        self.grpc_port = self._door.open(settings.host, settings.grpc_port)
        if settings.metrics_port is not None:
            self.metrics_port = self._scrapes.open(settings.host, settings.metrics_port)
        if settings.http_port is not None:
            self.http_port = self._http.open(settings.host, settings.http_port)
        await self._door.start()
        if self.metrics_port is not None:
            await self._scrapes.start()
        if self.http_port is not None:
            await self._http.start()
        self._watching.append(asyncio.create_task(self._descriptors.watch()))
        if not is_loopback(settings.host):
            log.warning("listening on %s without authentication: anyone who reaches it may use it", settings.host)

    async def load(self, make: Callable[[Settings], Model]) -> None:
        """Load the model and make its lanes: engines, buffers, one warm step of each size. Then health says SERVING."""
        start, settings = time.monotonic(), self.settings
        loop = asyncio.get_running_loop()
        died = functools.partial(loop.call_soon_threadsafe, self._died.set)
        device = await asyncio.to_thread(_device, settings, self.metrics, make, died)
        device.start()
        self.service.device = device
        self._watching.append(
            asyncio.create_task(watch(device, settings.watchdog, stalled=self.metrics.stalled_seconds.set))
        )
        self._tell()
        model = device.model
        log.info(
            "SERVING model=%s backend=%s precision=%s sizes=%s seats=%d threads=%d loaded_in_s=%.2f",
            model.id,
            model.backend.name,
            model.backend.precision,
            ",".join(f"{width}x{height}" for width, height in device.sizes),
            settings.seats,
            settings.threads or available_cores(),
            time.monotonic() - start,
        )

    def addresses(self) -> list[str]:
        """List where the doors are, in words."""
        host, doors = self.settings.host, [f"gRPC {joined(self.settings.host, self.grpc_port)}"]
        if self.http_port is not None:
            doors.insert(0, f"page http://{joined(host, self.http_port)}/")
        if self.metrics_port is not None:
            doors.append(f"metrics http://{joined(host, self.metrics_port)}/metrics")
        return doors

    def _scarce(self, why: str | None) -> None:
        """Refuse calls, saying `why`, and say not ready; None: no more."""
        self._door.calls.closed = why
        self.metrics.descriptors_scarce.set(why is not None)
        self._tell()

    def _tell(self) -> None:
        """Have health say whether requests are taken."""
        ready = self.service.device is not None and not self.service.draining and not self._door.calls.closed
        (self._door.serving if ready else self._door.not_serving)()
        self.metrics.ready.set(ready)

    @property
    def failed(self) -> bool:
        """Return whether the device has failed (see Device.failed)."""
        return self.service.device is not None and self.service.device.failed

    @property
    def makes_lane(self) -> bool:
        """Return whether a lane is being made (see Device.makes_lane)."""
        return self.service.device is not None and self.service.device.makes_lane

    @property
    def leaves_threads(self) -> bool:
        """Return whether threads are left at the end that nobody waits for: they may be in a compiler or a decoder."""
        return self.makes_lane or self.service.reads

    async def died(self) -> None:
        """Wait until the device fails; health says NOT_SERVING from then on."""
        await self._died.wait()
        self.service.draining = True
        self._tell()

    async def close(self, grace: float, farewell: float = FAREWELL) -> None:
        """Take no new requests; those that run have `grace` seconds, then each is told that the server stops.

        `farewell`: seconds for what is still on the wire then.
        """
        self.service.draining = True
        self._tell()
        device = self.service.device
        if device is not None and grace and (late := await asyncio.to_thread(device.dismiss_late, grace)):
            log.warning("%d requests cannot be done within the grace of %g s; their clients are told", late, grace)
        await asyncio.gather(self._door.drain(grace), self._http.drain(grace))
        if device is not None:
            why = f"the server stops, and its grace of {grace:g} s was over before the request was done"
            self.service.dismiss(why)
            device.dismiss(why)
        farewell = farewell if grace else 0.0
        await asyncio.gather(self._door.close(farewell), self._http.close(farewell))
        self.service.close()
        if device is not None:
            await asyncio.to_thread(device.stop)
        for watching in self._watching:
            watching.cancel()
        if self.service.tracing is not None:
            await asyncio.to_thread(self.service.tracing.close, FAREWELL if not grace else _TRACES)
        await self._scrapes.close()


async def serve(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; returns the process's exit status. Errors: LatentdError before serving."""
    server = Server(settings)
    await server.open()
    stop = asyncio.Event()

    def signalled(number: int) -> None:
        if stop.is_set() or server.service.device is None:
            # A second signal means now, and loading cannot be interrupted inside a compiler.
            stop_exports()
            print("interrupted" if number == signal.SIGINT else "terminated", file=sys.stderr, flush=True)
            os._exit(128 + number)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, signalled, number)
    try:
        await server.load(load_model)
    except Exception:
        await server.close(0)
        raise
    print(f"latentd serves {server.service.model_id}: {', '.join(server.addresses())}", flush=True)
    stopping, dying = asyncio.create_task(stop.wait()), asyncio.create_task(server.died())
    await asyncio.wait((stopping, dying), return_when=asyncio.FIRST_COMPLETED)
    if server.failed:  # every request has failed by now, so what is left is on the wire; a supervisor waits for the end
        await server.close(0.2, farewell=0.1)
    else:
        log.info("draining: requests have %g s to end", settings.grace)
        await server.close(settings.grace)
    log.info("stopped")
    if server.failed or server.leaves_threads:
        # At once: what torch frees on the way out asks CUDA for events, and after an error that stays this aborts. A
        # compiler's thread that comes back to an interpreter that has ended aborts too, or crashes in what is freed.
        # And the interpreter would wait for a thread that reads a picture, for seconds, though nobody has use for it.
        logging.shutdown()
        os._exit(1 if server.failed else 0)
    return 0


def _http_bounds(settings: Settings, most: int) -> Bounds:
    """Bound the HTTP port's connections. A picture to start from takes longer to come than a scrape's request."""
    seconds = settings.unread_seconds or math.inf
    return Bounds(connections=most, request=60.0, idle=round(settings.idle_seconds) or _FOR_EVER, write=seconds)


def load_model(settings: Settings) -> Model:
    """Open and load the checkpoint that the settings name."""
    choice = Choice(
        settings.backend,
        settings.precision,
        settings.threads or None,
        settings.device,
        settings.pixels,
        settings.attention,
    )
    on_gpu(choice)  # a device that is not here is told before the model is read; asking again costs next to nothing
    checkpoint = open_checkpoint(settings.model, settings.prediction)
    if checkpoint.has_safety_checker:
        log.warning("the checkpoint's safety checker is not run: pictures are delivered as they come")
    return load(checkpoint, choice, Beside(settings.style_adapter, settings.style_encoder, settings.judge))


def _device(
    settings: Settings, metrics: Metrics, make: Callable[[Settings], Model], died: Callable[[], object]
) -> Device:
    model = make(settings)
    default, unit = model.spec.defaults, model.spec.size_multiple
    sizes = list(settings.sizes) or [(default.width, default.height)]
    for width, height in sizes:
        if width % unit or height % unit or not (0 < width <= 4096 and 0 < height <= 4096):
            raise SettingsError(f"sizes: {width}x{height}; sides of this model are multiples of {unit}, up to 4096")
    _check_limits(settings, model)
    metrics.engine(model)
    admission = Admission(settings.queue_jobs, settings.queue_seconds)
    workers = max(1, min(4, available_cores()))
    return Device(
        model,
        sizes=sizes,
        seats=settings.seats,
        steps=settings.max_steps,
        chunks=settings.chunks,
        admission=admission,
        metrics=metrics,
        workers=workers,
        died=died,
    )


def _check_limits(settings: Settings, model: Model) -> None:
    """Errors: SettingsError for a limit that the model's own defaults exceed: plain requests would all be refused."""
    default = model.spec.defaults
    for name, limit, what in (
        ("max_steps", settings.max_steps, default.steps),
        ("max_guidance", settings.max_guidance, default.guidance),
    ):
        if limit < what:
            raise SettingsError(
                f"{name} is {limit:g}, and {model.id} takes {what:g} where a request does not say: every such request "
                f"would be refused; give {what:g} or more"
            )
