"""The server: bind, load, serve, drain."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import logging
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from engines.machine.cores import available_cores
from engines.machine.memory import available_memory
from engines.model import Model
from engines.process.exporting import stop_exports
from pipeline.checkpoint.opened import model_id
from server.access.gate import Gate
from server.address import joined
from server.descriptors import Descriptors, connections, raise_limit
from server.device.loop import Device
from server.device.watchdog import Watchdog
from server.doors.admin import AdminServicer
from server.doors.asgi import AsgiServer, Bounds
from server.doors.calls import CallBounds
from server.doors.grpc import ConnectionBounds, GrpcDoor
from server.doors.http.door import HttpDoor
from server.doors.keyed import keyed
from server.doors.probes import CONNECTIONS, ProbeDoor
from server.limits import Limits
from server.metrics import Metrics
from server.models.folder import Folder
from server.models.loading import Stage, choice_of, device_of, load_model
from server.models.succession import Succession
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
        self.gate = gate = Gate(settings, self.metrics.call_refused)
        for file, stale in gate.stale.items():
            self.metrics.file_stale(file, stale)
        self.metrics.memory_limit_bytes.set(available_memory() or math.inf)
        limits = Limits(
            settings.max_prompt,
            settings.max_steps,
            settings.max_guidance,
            settings.max_images,
            settings.priority_callers,
        )
        self.service = Service(name, limits, self.metrics, gate.policy.key_of)
        self.service.tracing = tracing_of(settings, self.metrics)
        calls = CallBounds(
            settings.max_calls, settings.max_calls_caller, settings.unread_seconds or math.inf, settings.max_message
        )
        descriptors = raise_limit()
        most, scrapers = connections(descriptors)
        most -= 0 if settings.health_port is None else CONNECTIONS
        pages = 0 if settings.http_port is None else min(_MOST_HTTP, most // 2)
        bounds = ConnectionBounds(
            min(most - pages, settings.max_connections), settings.max_streams, settings.idle_seconds
        )
        self._watchdog = Watchdog(settings.watchdog, self.metrics.stalled_seconds.set)
        self.succession: Succession | None = None
        if settings.admin:
            if settings.admin_models is None:
                raise SettingsError("admin is on, and admin_models is not given: the folder that models may come from")
            if settings.keys is None:
                raise SettingsError("admin is on, and keys is not given: only an admin's key may swap the model")
            self.succession = Succession(
                self.service, Folder(settings.admin_models), self._another, self._watchdog.begin, self._watchdog.end
            )
        elif settings.admin_models is not None:
            log.warning("admin_models is given, and admin is off: nobody can swap the model")
        admin = self.succession and AdminServicer(self.service, self.succession, gate.policy)
        self._door = GrpcDoor(self.service, calls, bounds, gate.policy, admin)
        self._probes = ProbeDoor(self._door)
        web = _http_bounds(settings, pages)
        self._http = HttpDoor(
            self.service, self._door.calls, settings.max_message, settings.allow_host, web, gate.policy
        )
        self._descriptors = Descriptors(descriptors, self._scarce)
        ended = functools.partial(self.metrics.connection_ended, "metrics")
        scrapes = keyed(self.metrics.app, gate.policy)
        self._scrapes = AsgiServer(scrapes, "metrics", Bounds(connections=scrapers), ended, gate.certificates)
        self._died = asyncio.Event()
        self._watching: list[asyncio.Task[None]] = []
        self._make: Callable[[Settings], Model] = load_model
        self._end: Callable[[], object] = self._died.set  # of any thread, once it is loaded
        self.grpc_port = 0
        self.http_port: int | None = None  # None: no HTTP
        self.metrics_port: int | None = None  # None: no metrics
        self.health_port: int | None = None  # None: health is on the gRPC port alone

    async def open(self) -> None:
        """Bind, and answer health with NOT_SERVING: a taken port is an error before the seconds that a load takes."""
        settings, certificates = self.settings, self.gate.certificates
        self.grpc_port = self._door.open(settings.host, settings.grpc_port, certificates)
        if settings.health_port is not None:
            self.health_port = self._probes.open(settings.host, settings.health_port)
        if settings.metrics_port is not None:
            self.metrics_port = self._scrapes.open(settings.host, settings.metrics_port)
        if settings.http_port is not None:
            self.http_port = self._http.open(settings.host, settings.http_port, certificates)
        await self._door.start()
        await self._probes.start()
        if self.metrics_port is not None:
            await self._scrapes.start()
        if self.http_port is not None:
            await self._http.start()
        self._watching.append(asyncio.create_task(self._descriptors.watch()))
        self.gate.warn()

    async def load(self, make: Callable[[Settings], Model]) -> None:
        """Load the model and make its lanes: engines, buffers, one warm step of each size. Then health says SERVING."""
        start, settings = time.monotonic(), self.settings
        self._make = make
        self._end = functools.partial(asyncio.get_running_loop().call_soon_threadsafe, self._died.set)
        if self.succession is not None:
            await asyncio.to_thread(self.succession.loading, choice_of(settings))
        device = await asyncio.to_thread(device_of, settings, self.metrics, make, self._end)
        if self.succession is not None:
            self.succession.loaded(device.model)
        self.metrics.engine(device.model)
        device.start()
        self.service.device = device
        self._watchdog.begin(device)
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

    def _another(self, path: Path, prediction: str, reach: Callable[[Stage], None]) -> Device:
        """Make a device of another model, with the settings of the first: see server.models.succession.Make."""
        settings = dataclasses.replace(self.settings, model=path, prediction=prediction)
        return device_of(settings, self.metrics.beside(model_id(path)), self._make, self._end, reach)

    def addresses(self) -> list[str]:
        """List where the doors are, in words."""
        host, doors = self.settings.host, [f"gRPC {joined(self.settings.host, self.grpc_port)}"]
        web = "http" if self.gate.certificates is None else "https"
        if self.http_port is not None:
            doors.insert(0, f"page {web}://{joined(host, self.http_port)}/")
        if self.metrics_port is not None:
            doors.append(f"metrics {web}://{joined(host, self.metrics_port)}/metrics")
        if self.health_port is not None:
            doors.append(f"health {joined(host, self.health_port)}")
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
        return any(device.failed for device in self.service.devices)

    @property
    def makes_lane(self) -> bool:
        """Return whether a lane is being made (see Device.makes_lane)."""
        return any(device.makes_lane for device in self.service.devices)

    @property
    def leaves_threads(self) -> bool:
        """Return whether threads are left at the end that nobody waits for: they may be in a compiler or a decoder."""
        makes_model = self.succession is not None and self.succession.makes
        return self.makes_lane or self.service.reads or makes_model

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
        if self.succession is not None:
            self.succession.stop()
        devices = self.service.devices
        # The older one first: the other has what that leaves of the grace.
        late = sum([await asyncio.to_thread(one.dismiss_late, grace) for one in reversed(devices)] if grace else [])
        if late:
            log.warning("%d requests cannot be done within the grace of %g s; their clients are told", late, grace)
        await asyncio.gather(self._door.drain(grace), self._http.drain(grace))
        why = f"the server stops, and its grace of {grace:g} s was over before the request was done"
        if devices:
            self.service.dismiss(why)
        for device in devices:
            device.dismiss(why)
        farewell = farewell if grace else 0.0
        await asyncio.gather(self._door.close(farewell), self._http.close(farewell))
        await self._probes.close()
        self.service.close()
        for device in devices:
            await asyncio.to_thread(device.stop)
        if self.succession is not None:
            self.succession.close()
        for watching in self._watching:
            watching.cancel()
        self._watchdog.close()
        if self.service.tracing is not None:
            await asyncio.to_thread(self.service.tracing.close, FAREWELL if not grace else _TRACES)
        await self._scrapes.close()


# What ends the server, and what it says then.
_ENDED = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}


async def serve(settings: Settings) -> int:
    """Serve until SIGTERM, SIGINT or SIGHUP; returns the process's exit status. Errors: LatentdError before serving."""
    server = Server(settings)
    await server.open()
    stop, seen = asyncio.Event(), set[signal.Signals]()

    def signalled(number: signal.Signals) -> None:
        if number in seen or (stop.is_set() and number == signal.SIGINT) or server.service.device is None:
            # A second one means now, and loading cannot be interrupted inside a compiler. But a SIGTERM after another
            # kind is not a second one: a parent may send it that got the first as well, at a Ctrl-C or hang-up.
            stop_exports()
            with contextlib.suppress(OSError):  # the terminal is closed
                print(_ENDED[number], file=sys.stderr, flush=True)
            os._exit(128 + number)
        if number != signal.SIGHUP:  # systemd may send it right after SIGTERM (SendSIGHUP), and a shell twice
            seen.add(number)
        stop.set()

    for number in _ENDED:
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # as nohup leaves it
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
