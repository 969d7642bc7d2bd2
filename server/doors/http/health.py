"""Health over HTTP: whether the process answers, and whether it serves."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import JSONResponse

from server.errors import NotServing
from server.service import Service


def health(service: Service) -> APIRouter:
    router = APIRouter(tags=["health"])

    @router.head("/healthz", include_in_schema=False)
    @router.get("/healthz", summary="200 once the process answers")
    async def alive() -> JSONResponse:
        return JSONResponse({"status": "alive"})

    @router.head("/readyz", include_in_schema=False)
    @router.get("/readyz", summary="200 when requests are taken; 503 while the model loads, and when the server drains")
    async def ready() -> JSONResponse:
        try:
            service.ready()
        except NotServing as error:
            return JSONResponse({"status": "not serving", "reason": str(error)}, 503)
        return JSONResponse({"status": "serving"})

    return router
