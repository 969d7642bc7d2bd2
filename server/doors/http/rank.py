"""Ranking over HTTP: how near pictures are to texts, by the server's judge."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from server.doors.http.answers import json_response
from server.doors.http.body import read_body, schema_of
from server.doors.http.call import Call, answering
from server.doors.http.pictures import Picture
from server.service import Service


class Ranking(BaseModel):
    """A request to score pictures against texts."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = Field(None, description="The id of the model served.")
    pictures: list[Picture] = Field(description="PNG, JPEG or WebP files in base64.")
    texts: list[str] = Field(description="What they are compared with.")


def rank(service: Service, most: int) -> APIRouter:
    """Make the route. `most`: bytes of a body."""
    router = APIRouter(tags=["page"])

    async def ranked(call: Call) -> Response:
        body = await read_body(call.request, Ranking, most)
        ranks = await call.in_time(service.rank, call.caller, body.model, body.pictures, body.texts)
        answer = await json_response({"scores": ranks.scores.tolist(), "texts_cut": ranks.cut})
        call.ended()
        return answer

    router.post("/api/rank", summary="Score pictures against texts", openapi_extra=schema_of(Ranking))(
        answering(service, ranked)
    )
    return router


__all__ = ["rank"]
