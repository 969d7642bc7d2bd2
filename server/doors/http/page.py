"""The page: its files, what it asks about the model, and its requests as server-sent events."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

from server.doors.http.answers import EventStream, json_response, sse, sse_of
from server.doors.http.body import read_body, schema_of
from server.doors.http.call import Call, answering
from server.doors.http.described import card_of, described
from server.doors.http.errors import PAGE, Refusal
from server.doors.http.pictures import Picture
from server.events import Done, Event, Image, Preview, Started, Step
from server.job import Job
from server.request import ImageRequest
from server.service import Accepted, Service

FILES = Path(__file__).parents[3] / "web"
_TELL_SECONDS = 1.0  # how often one who waits is told his place


class Lora(BaseModel):
    """A LoRA by its name, and how much it weighs."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    weight: float = 1.0


class Drawing(BaseModel):
    """A request for pictures, in the words of ImageRequest; null or absent: the model's own default.

    Pictures are files in base64.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = None
    prompt: str | None = None
    negative_prompt: str | None = None
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    guidance: float | None = None
    guidance_start: float | None = None
    guidance_end: float | None = None
    sampler: str | None = None
    seed: int | None = None
    images: int | None = None
    format: str | None = None
    quality: int | None = None
    preview_every: int | None = None
    priority: int | None = None
    long_prompt: bool | None = None
    prompt_weights: bool | None = None
    clip_skip: int | None = None
    init_image: Picture | None = None
    mask: Picture | None = None
    strength: float | None = None
    fit: str | None = None
    style_image: Picture | None = None
    style_weight: float | None = None
    loras: list[Lora] | None = None
    keep: int | None = None
    original_size: str | None = None
    crop: str | None = None
    target_size: str | None = None


def page(service: Service, most: int) -> APIRouter:
    """Make the routes. `most`: bytes of a body."""
    router = APIRouter(tags=["page"])

    async def model(call: Call) -> Response:
        device = service.ready()
        card, loras = await asyncio.to_thread(card_of, device), await service.loras()
        return await json_response(described(service.limits, device, card, loras))

    async def generate(call: Call) -> Response:
        body = await read_body(call.request, Drawing, most)
        fields = {name: value for name, value in body if name != "loras"}
        loras = [(lora.name, lora.weight) for lora in body.loras or ()]
        accepted = await call.submit(ImageRequest(**fields, loras=loras or None))
        return EventStream(call, _events(service, call, accepted), _failure(call))

    @router.head("/", include_in_schema=False)
    @router.get("/", include_in_schema=False)
    async def index() -> Response:
        if not (FILES / "index.html").is_file():
            raise HTTPException(404)
        return FileResponse(FILES / "index.html", headers={"cache-control": "no-cache"})

    router.get("/api/model", summary="The model served: sizes, samplers, defaults and limits")(
        answering(service, model, counted=False)
    )
    router.post("/api/generate", summary="Draw pictures, told as they form", openapi_extra=schema_of(Drawing))(
        answering(service, generate)
    )
    if FILES.is_dir():
        router.mount("/static", _Files(directory=FILES))
    return router


class _Files(StaticFiles):
    """Has files asked for again, so that a new server's page is not made of an old one's; unchanged ones are a 304."""

    def file_response(self, *args: Any, **options: Any) -> Response:
        response = super().file_response(*args, **options)
        response.headers["cache-control"] = "no-cache"
        return response


async def _events(service: Service, call: Call, accepted: Accepted) -> AsyncGenerator[bytes]:
    job, wish = accepted.job, accepted.job.wish
    queued = {
        "request_id": job.id,
        "model": job.model,
        "seed": wish.seed,
        "steps": wish.steps,
        "guidance": wish.guidance,
        "sampler": wish.sampler,
        "width": wish.size[0],
        "height": wish.size[1],
        "images": wish.images,
        "ahead": accepted.ahead,
        "prompt_cut": wish.prompt.cut,
        "negative_prompt_cut": wish.negative is not None and wish.negative.cut,
        "expected_seconds": _expected(job),
    }
    yield await sse("queued", queued)
    seated = False
    async for event in _or_a_second(call.events()):
        if event is not None:
            seated = seated or isinstance(event, Started)
            yield await _sse(event, job)
        elif not seated and (ahead := service.ahead(job)) is not None:
            yield await sse("waiting", {"ahead": ahead, "expected_seconds": _expected(job)})


async def _or_a_second(events: AsyncIterator[Event]) -> AsyncGenerator[Event | None]:
    """Yield events as they come, and None after each second without one."""
    following: asyncio.Future[Event] | None = None
    try:
        while True:
            if following is None:
                following = asyncio.ensure_future(anext(events))
            await asyncio.wait((following,), timeout=_TELL_SECONDS)
            if not following.done():
                yield None
                continue
            try:
                event = following.result()
            except StopAsyncIteration:
                return
            following = None
            yield event
    finally:
        if following is not None:
            following.cancel()


def _expected(job: Job) -> float | None:
    """Return the seconds until a job's end, as it was forecast; None where nobody could."""
    expected = job.expected
    return None if expected is None else max(0.0, job.arrived + expected - time.monotonic())


async def _sse(event: Event, job: Job) -> bytes:
    match event:
        case Started(index):
            return await sse("started", {"index": index})
        case Step(index, step, steps):
            return await sse("step", {"index": index, "step": step, "steps": steps})
        case Preview(index, step, jpeg):
            return await sse("preview", {"index": index, "step": step, "jpeg": jpeg}, len(jpeg))
        case Image(index, data, seed, score):
            width, height = job.wish.size
            fields = {"index": index, "seed": seed, "width": width, "height": height, "format": job.wish.format}
            return await sse("image", {**fields, "score": score, "data": data}, len(data))
        case Done(timings):
            parts = {f"{part}_ms": ms for part, ms in timings.parts(timings.delivered).items()}
            counts = {"steps": job.wish.table.steps, "evaluations": job.wish.table.evaluations}
            return await sse("done", {"timings": {**parts, "seats_shared": timings.seats_shared, **counts}})
        case _:
            raise AssertionError(event)


def _failure(call: Call) -> Any:
    def event(refusal: Refusal) -> bytes:
        return sse_of("error", json.dumps(refusal.body(PAGE, call.id)["error"]).encode())

    return event
