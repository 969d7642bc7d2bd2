"""The server: bind, load, serve, drain."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import signal
import sys
import time

from engines.cores import available_cores
from engines.first_use import artifact_of, stop_exports
from engines.model import load
from pipeline.errors import LatentdError
from server.admission import Admission
from server.device import Device
from server.doors.grpc import GrpcDoor
from server.limits import Limits
from server.metrics import Metrics
from server.service import Service
from server.settings import Settings, SettingsError

log = logging.getLogger("latentd.server")


async def serve(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; returns the process's exit status. Errors: LatentdError before serving."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    model_id = settings.model.resolve().name
    metrics = Metrics(model_id)
    limits = Limits(settings.max_prompt, settings.max_steps, settings.max_guidance, settings.max_images)
    service = Service(model_id, limits, metrics)

    # Bound before the minutes that a first use can take, so that a taken port is told at once.
    door = GrpcDoor(service, settings.max_message)
    grpc_port = door.open(settings.host, settings.grpc_port)
    metrics_port = metrics.serve(settings.host, settings.metrics_port)
    await door.start()
    if not _is_loopback(settings.host):
        log.warning("listening on %s without authentication: anyone who reaches it may use it", settings.host)

    failed = False

    def died() -> None:  # from the device's thread
        nonlocal failed
        failed = True
        loop.call_soon_threadsafe(stop.set)

    signals = 0

    def signalled(number: int) -> None:
        nonlocal signals
        signals += 1
        if signals > 1 or service.device is None:
            # Loading cannot be interrupted inside the compiler, and a second signal means now.
            stop_exports()
            print("interrupted" if number == signal.SIGINT else "terminated", file=sys.stderr, flush=True)
            os._exit(128 + number)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, signalled, number)

    start = time.monotonic()
    try:
        service.device = await asyncio.to_thread(_load, settings, metrics, died)
    except LatentdError:
        await door.close(0)
        raise
    service.device.start()
    await door.serving()
    model = service.device.model
    log.info(
        "SERVING model=%s backend=%s precision=%s sizes=%s seats=%d threads=%d loaded_in_s=%.2f",
        model.id,
        model.backend.name,
        model.backend.precision,
        ",".join(f"{width}x{height}" for width, height in service.device.sizes),
        settings.seats,
        settings.threads or available_cores(),
        time.monotonic() - start,
    )
    print(f"latentd serves {model.id}: gRPC {settings.host}:{grpc_port}, metrics http://{settings.host}:{metrics_port}/metrics", flush=True)

    await stop.wait()
    service.draining = True
    await door.not_serving()
    log.info("draining: requests have %g s to end", settings.grace)
    await door.close(0 if failed else settings.grace)
    await asyncio.to_thread(service.device.stop)
    log.info("stopped")
    return 1 if failed else 0


def _load(settings: Settings, metrics: Metrics, died: object) -> Device:
    """Artifact, engines, buffers; one warm step of each size. In a thread: it takes seconds, or minutes once."""
    artifact = artifact_of(settings.model)
    default, unit = artifact.spec.defaults, artifact.spec.size_multiple
    sizes = list(settings.sizes) or [(default.width, default.height)]
    for width, height in sizes:
        if width % unit or height % unit or not (0 < width <= 4096 and 0 < height <= 4096):
            raise SettingsError(f"sizes: {width}x{height}; sides of this model are multiples of {unit}, up to 4096")
    model = load(artifact, settings.backend, settings.precision, settings.threads or None)
    metrics.engine(model)
    workers = max(1, min(4, available_cores()))
    admission = Admission(settings.queue_jobs, settings.queue_seconds)
    return Device(model, sizes, settings.seats, admission, metrics, workers, died)  # type: ignore[arg-type]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
