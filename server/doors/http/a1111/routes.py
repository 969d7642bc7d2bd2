"""The everyday part of AUTOMATIC1111's API, for the tools that speak it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fastapi import APIRouter
from pydantic import RootModel
from starlette.responses import JSONResponse, Response

from engines.model import Model
from server.doors.http.a1111 import options
from server.doors.http.a1111.img2img import NAMES as IMG2IMG_NAMES
from server.doors.http.a1111.img2img import Img2Img
from server.doors.http.a1111.img2img import image_request as img2img_request
from server.doors.http.a1111.infotext import info
from server.doors.http.a1111.samplers import listed, schedules
from server.doors.http.a1111.script import NAME
from server.doors.http.a1111.txt2img import NAMES, SCRIPTS, Txt2Img, echoed, image_request
from server.doors.http.a1111.underway import Registry, Underway
from server.doors.http.answers import json_response
from server.doors.http.body import read_body, schema_of
from server.doors.http.call import Call, answering
from server.errors import Cancelled
from server.request import ImageRequest
from server.service import Accepted, Service
from server.upload import inverted

# What we have nothing of but ourselves, and clients ask for at their start.
_NONE: dict[str, Any] = {
    "upscalers": [],
    "latent-upscale-modes": [],
    "hypernetworks": [],
    "face-restorers": [],
    "realesrgan-models": [],
    "prompt-styles": [],
    "sd-vae": [],
    "sd-modules": [],
    "embeddings": {"loaded": {}, "skipped": {}},
    "scripts": {"txt2img": [NAME], "img2img": [NAME]},
    "script-info": [
        {"name": NAME, "is_alwayson": True, "is_img2img": img2img, "args": []} for img2img in (False, True)
    ],
    "extensions": [],
    "cmd-flags": {},
}


class Options(RootModel[dict[str, Any]]):
    """Options to set."""


def a1111(service: Service, most: int) -> APIRouter:
    """Make the routes. `most`: bytes of a body."""
    router = APIRouter(prefix="/sdapi/v1", tags=["AUTOMATIC1111"])
    registry = Registry()

    async def txt2img(call: Call) -> Response:
        with registry.entered(call.caller, call.id) as underway:
            body = await read_body(call.request, Txt2Img, most)
            with service.holding() as device:
                model, images = device.model, service.limits.images
                if (body.model_extra or {}).get(SCRIPTS):  # with a picture, perhaps
                    request = await asyncio.to_thread(image_request, body, model, images)
                else:
                    request = image_request(body, model, images)
                accepted = await call.submit(request, NAMES, wait=False, device=device)
            return await _draw(underway, call, body, request, accepted, model)

    async def img2img(call: Call) -> Response:
        with registry.entered(call.caller, call.id) as underway:
            body = await read_body(call.request, Img2Img, most)
            with service.holding() as device:
                model = device.model
                request = await asyncio.to_thread(img2img_request, body, model, service.limits.images)
                if request.mask is not None and body.inpainting_mask_invert:
                    mask = await call.in_time(service.with_mask, call.caller, inverted, request.mask)
                    request = replace(request, mask=mask)
                accepted = await call.submit(request, IMG2IMG_NAMES, wait=False, device=device)
            return await _draw(underway, call, body, request, accepted, model)

    async def progress(call: Call) -> Response:
        skip = call.request.query_params.get("skip_current_image", "").lower() in ("true", "1")
        if not skip:
            service.begin_previews()  # until somebody looks for them they would cost those who never do
        return await json_response(registry.progress(call.caller, not skip))

    async def interrupt(call: Call) -> Response:
        registry.interrupt(call.caller)
        return JSONResponse({})

    async def models(call: Call) -> Response:
        model = service.ready().model
        entry = {
            "title": options.title_of(model),
            "model_name": model.id,
            "hash": model.digest[:10],
            "sha256": model.digest,
            "filename": model.id,
            "config": None,
        }
        return JSONResponse([entry])

    async def loras(call: Call) -> Response:
        usable = [lora for lora in await service.loras() if not lora.refusal]
        return JSONResponse(
            [{"name": lora.name, "alias": lora.name, "path": lora.name, "metadata": {}} for lora in usable]
        )

    async def read_options(call: Call) -> Response:
        return JSONResponse(options.current(service.ready().model))

    async def set_options(call: Call) -> Response:
        sent = await read_body(call.request, Options, most)
        options.refuse_others(sent.root, service.ready().model)
        return JSONResponse(None)

    async def refresh(call: Call) -> Response:
        return JSONResponse(None)

    def plain(answer: Any) -> Callable[..., Any]:
        async def respond() -> Response:
            return JSONResponse(answer)

        return respond

    router.post("/txt2img", summary="Draw pictures", openapi_extra=schema_of(Txt2Img))(answering(service, txt2img))
    router.post("/img2img", summary="Draw a picture anew", openapi_extra=schema_of(Img2Img))(
        answering(service, img2img)
    )
    router.get("/progress", summary="How far the caller's oldest request has come")(
        answering(service, progress, counted=False)
    )
    router.post("/interrupt", summary="End the caller's requests")(answering(service, interrupt, counted=False))
    router.get("/sd-models", summary="The model served")(answering(service, models, counted=False))
    router.get("/loras", summary="The LoRAs that a prompt may name: <lora:name:0.8>")(
        answering(service, loras, counted=False)
    )
    router.get("/options", summary="What is set")(answering(service, read_options, counted=False))
    router.post("/options", summary="Set what is set; all else is refused", openapi_extra=schema_of(Options))(
        answering(service, set_options, counted=False)
    )
    router.post("/refresh-checkpoints", summary="Nothing: one model is served")(
        answering(service, refresh, counted=False)
    )
    for path, answer in {"samplers": listed(), "schedulers": schedules(), **_NONE}.items():
        router.get(f"/{path}", summary="What there is")(plain(answer))
    return router


async def _draw(
    underway: Underway, call: Call, body: Txt2Img, request: ImageRequest, accepted: Accepted, model: Model
) -> Response:
    underway.accepted(accepted.job)
    try:
        await call.unless_gone(_follow(call, underway))
    except Cancelled:
        if not underway.interrupted:
            raise
    pictures = sorted(underway.pictures, key=lambda picture: picture.index)
    sent = [] if body.send_images is False else [picture.data for picture in pictures]
    about = info(accepted.job.wish, model, request, pictures, body.batch_size or 1)
    content = {"images": sent, "parameters": echoed(body), "info": json.dumps(about)}
    answer = await json_response(content, sum(map(len, sent)))
    call.ended(Cancelled("interrupted") if underway.interrupted else None)
    return answer


async def _follow(call: Call, underway: Underway) -> None:
    async for event in call.events():
        underway.note(event)
