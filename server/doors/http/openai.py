"""OpenAI's images API: models, and generations at once or as a stream with partial images."""

from __future__ import annotations

import json
import math
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from pipeline.conditions.original import STRENGTH, steps_skipped
from pipeline.errors import InvalidRequest
from server.doors.http.answers import EventStream, json_response, sse, sse_of
from server.doors.http.body import form_schema_of, read_body, read_form, schema_of
from server.doors.http.call import Call, answering
from server.doors.http.errors import OPENAI, MissingField, Refusal
from server.doors.http.generation import FILES, NAMES, Edit, Generation, image_request
from server.errors import UnknownModel
from server.events import Image, Preview
from server.limits import within
from server.request import ImageRequest
from server.service import Accepted, Service
from server.upload import from_transparency

MOST_PARTIAL = 3


def openai(service: Service, most: int) -> APIRouter:
    """Make the routes. `most`: bytes of a body."""
    router = APIRouter(prefix="/v1", tags=["OpenAI images"])

    def model() -> dict[str, Any]:
        service.ready()
        return {"id": service.model_id, "object": "model", "created": 0, "owned_by": "latentd"}

    async def models(call: Call) -> Response:
        return await json_response({"object": "list", "data": [model()]})

    async def one(call: Call) -> Response:
        asked, known = call.request.path_params["model"], model()
        if asked != service.model_id:
            raise UnknownModel(f"model is {asked[:64]!r}; this server has {service.model_id}")
        return await json_response(known)

    async def generations(call: Call) -> Response:
        body = await read_body(call.request, Generation, most)
        return await _Generations(service, call).answer(body, style=body.style_image)

    async def edits(call: Call) -> Response:
        body, files = await read_form(call.request, Edit, FILES, most)
        if (image := files.get("image")) is None:
            raise MissingField("image is missing", "image")
        mask = files.get("mask")
        if mask is not None:
            mask = await call.in_time(service.with_mask, call.caller, from_transparency, mask)
        style = files.get("style_image", body.style_image)
        return await _Generations(service, call, "image_edit").answer(body, image, mask, style)

    router.get("/models", summary="The model served")(answering(service, models, counted=False))
    parameter = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
    router.get("/models/{model:path}", summary="The model served", openapi_extra={"parameters": [parameter]})(
        answering(service, one, counted=False)
    )
    router.post("/images/generations", summary="Draw pictures", openapi_extra=schema_of(Generation))(
        answering(service, generations)
    )
    router.post(
        "/images/edits",
        summary="Draw a picture anew, or a part of it",
        openapi_extra=form_schema_of(Edit, FILES, FILES[:1]),
    )(answering(service, edits))
    return router


@dataclass(frozen=True)
class _Generations:
    """Answers one request for generations."""

    service: Service
    call: Call
    kind: str = "image_generation"  # as OpenAI's events name it

    async def answer(
        self, body: Generation, image: bytes | None = None, mask: bytes | None = None, style: bytes | None = None
    ) -> Response:
        partial = _check(body)
        request = replace(image_request(body), init_image=image, mask=mask, style_image=style)
        accepted, wanted = await self._accepted(body, request, partial)
        if body.stream:
            return EventStream(self.call, self._events(accepted, wanted), _failure)
        pictures, _ = await self.call.pictures()
        size = sum(len(picture.data) for picture in pictures)
        wish = accepted.job.wish
        answer = await json_response(
            {
                "created": int(time.time()),
                "background": "opaque",
                "output_format": wish.format,
                "size": f"{wish.size[0]}x{wish.size[1]}",
                "data": [{"b64_json": picture.data, **_ours(picture)} for picture in pictures],
                "usage": _usage(accepted),
            },
            size,
        )
        self.call.ended()
        return answer

    async def _accepted(self, body: Generation, request: ImageRequest, partial: int) -> tuple[Accepted, PartialSteps]:
        """Submit a request; returns too after which steps partial images are sent. Holds its device no longer."""
        with self.service.holding(request.model) as device:
            steps = body.steps or device.model.spec.defaults.steps
            within("steps", steps, 1, self.service.limits.steps)  # an integer of JSON may be too large for a float
            if request.init_image is not None:
                strength = STRENGTH if request.strength is None else within("strength", request.strength, 0.0, 1.0)
                steps -= steps_skipped(steps, strength)
            wanted = partial_steps(steps, partial)
            request = replace(request, preview_every=wanted.every if partial else 0, progress=False)
            return await self.call.submit(request, NAMES, device=device), wanted

    async def _events(self, accepted: Accepted, wanted: PartialSteps) -> AsyncGenerator[bytes]:
        wish = accepted.job.wish
        common = {
            "created_at": int(time.time()),
            "size": f"{wish.size[0]}x{wish.size[1]}",
            "quality": "auto",
            "background": "opaque",
        }
        async for event in self.call.events():
            match event:
                case Preview(step=step, jpeg=jpeg) if step in wanted.steps:
                    yield await _event(
                        f"{self.kind}.partial_image",
                        jpeg,
                        {**common, "output_format": "jpeg", "partial_image_index": wanted.steps.index(step)},
                    )
                case Image(data=data):
                    yield await _event(
                        f"{self.kind}.completed",
                        data,
                        {**common, "output_format": wish.format, "usage": _usage(accepted), **_ours(event)},
                    )


def _ours(picture: Image) -> dict[str, Any]:
    """Return what we say of a picture beside OpenAI's words: its seed, and its score where it was judged."""
    return {"seed": picture.seed} | ({} if picture.score is None else {"score": picture.score})


async def _event(name: str, picture: bytes, fields: dict[str, Any]) -> bytes:
    return await sse(name, {"type": name, "b64_json": picture, **fields}, len(picture))


def _failure(refusal: Refusal) -> bytes:
    return sse_of("error", json.dumps({"type": "error", **refusal.body(OPENAI, "")}).encode())


def _check(body: Generation) -> int:
    """Check what no other door has; returns how many partial images are wanted. Errors: InvalidRequest."""
    if body.response_format == "url":
        raise InvalidRequest("response_format is 'url'; pictures are kept nowhere: ask for b64_json", "response_format")
    if body.background == "transparent":
        raise InvalidRequest("background is 'transparent'; pictures are opaque", "background")
    partial = within("partial_images", body.partial_images or 0, 0, MOST_PARTIAL)
    if partial and not body.stream:
        raise InvalidRequest(f"partial_images is {partial}; they come in a stream only: set stream", "partial_images")
    if body.stream and body.n not in (None, 1):
        raise InvalidRequest(f"n is {body.n}; a stream has one picture", "n")
    return partial


@dataclass(frozen=True)
class PartialSteps:
    """Says after which steps partial images are sent, and how often a preview is made for them."""

    steps: list[int]
    every: int


def partial_steps(steps: int, partial: int) -> PartialSteps:
    """Spread partial images evenly over so many steps; fewer where there are not as many steps between."""
    every = max(1, steps // (partial + 1))
    even = (every * math.floor(steps * part / (partial + 1) / every + 0.5) for part in range(1, partial + 1))
    return PartialSteps(sorted({step for step in even if 0 < step < steps}), every)


def _usage(accepted: Accepted) -> dict[str, Any]:
    """Count text tokens; pictures are not made of tokens here."""
    wish = accepted.job.wish
    tokens = wish.prompt.tokens + (wish.negative.tokens if wish.negative else 0)
    details = {"text_tokens": tokens, "image_tokens": 0}
    return {"input_tokens": tokens, "input_tokens_details": details, "output_tokens": 0, "total_tokens": tokens}
