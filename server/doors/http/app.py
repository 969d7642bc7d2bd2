"""The FastAPI app of the HTTP door, put together from its rooms."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from latentd import __version__
from server.doors.http.a1111.routes import a1111
from server.doors.http.errors import HttpError, Refusal, UnknownPath, door_of
from server.doors.http.health import health
from server.doors.http.openai import openai
from server.doors.http.page import page
from server.doors.http.rank import rank
from server.service import Service


def application(service: Service, most: int) -> FastAPI:
    """Put the app together. `most`: bytes of a request's body."""
    app = FastAPI(title="latentd", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.add_exception_handler(HTTPException, _refused)  # paths and methods that there are not
    for router in (
        health(service),
        openai(service, most),
        a1111(service, most),
        page(service, most),
        rank(service, most),
    ):
        app.include_router(router)
    return app


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path, id = request.url.path, request.state.request_id
    if error.status_code == 404:
        refusal = Refusal.of(UnknownPath(path), id)
    else:
        phrase = HTTPStatus(error.status_code).phrase.lower()
        refusal = Refusal.of(HttpError(error.status_code, f"{request.method} {path[:64]}: {phrase}"), id)
    headers = {"content-type": "application/json", **(error.headers or {})}
    return Response(refusal.content(door_of(path), id), error.status_code, headers)
