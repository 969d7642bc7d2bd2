"""Our own part of a request, where A1111's extensions have theirs: alwayson_scripts, under our name.

{"alwayson_scripts": {"latentd": {"args": [{"keep": 2, "guidance_end": 0.6}]}}}
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import InvalidRequest
from server.doors.http.body import refusal_of
from server.doors.http.pictures import Picture

FIELD, NAME = "alwayson_scripts", "latentd"


class Script(BaseModel):
    """Holds what A1111 has no word for, in the words of ImageRequest."""

    model_config = ConfigDict(extra="forbid")

    style_image: Picture | None = Field(None, description="A picture to take a style from, in base64.")
    style_weight: float | None = Field(None, description="How much of it, 0 to 2.")
    keep: int | None = Field(None, description="Of the pictures the so many nearest to the prompt.")
    guidance_start: float | None = Field(None, description="Guide from this fraction of the steps on, 0 to 1.")
    guidance_end: float | None = Field(None, description="Guide up to this fraction of the steps, 0 to 1.")
    original_size: str | None = Field(None, description="SDXL: as if it had been so large, WIDTHxHEIGHT.")
    crop: str | None = Field(None, description="SDXL: and cropped at this corner, LEFTxTOP.")
    target_size: str | None = Field(None, description="SDXL: to this size, WIDTHxHEIGHT.")


def of_scripts(scripts: Any) -> dict[str, Any]:
    """Read alwayson_scripts: fields of ImageRequest. Errors: InvalidRequest, also for every other script that does
    something.
    """
    if not scripts:
        return {}
    if not isinstance(scripts, dict):
        raise InvalidRequest(f"{FIELD} is no object; it takes {NAME}", FIELD)
    others = [name for name, script in scripts.items() if name.lower() != NAME and _does_something(script)]
    if others:
        listed = ", ".join(name[:64] for name in others[:8])
        raise InvalidRequest(f"{FIELD} is of {listed}; this server has {NAME} alone", FIELD)
    written = [script for name, script in scripts.items() if name.lower() == NAME and _does_something(script)]
    if not written:
        return {}
    if len(written) > 1:
        raise InvalidRequest(
            f"{FIELD} has {NAME} {len(written)} times, in small and capital letters; it takes one", FIELD
        )
    (ours,) = written
    args = ours.get("args") if isinstance(ours, dict) else None
    if not isinstance(args, list) or len(args) != 1 or not isinstance(args[0], dict):
        raise InvalidRequest(f"{FIELD}.{NAME}.args takes a list of one object", FIELD)
    try:
        return Script.model_validate(args[0]).model_dump(exclude_none=True)
    except ValidationError as error:
        raise refusal_of(error, list(Script.model_fields)) from None


def _does_something(script: Any) -> bool:
    return bool(script.get("args")) if isinstance(script, dict) else bool(script)


__all__ = ["FIELD", "NAME", "of_scripts"]
