"""Bodies of requests: read up to the limit, off the event loop where large, and refused in a sentence a field."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from latentd.variables import meant
from pipeline.errors import InvalidRequest
from server.doors.http.errors import HttpError, MissingField, UnknownField
from server.errors import Cancelled

_LARGE = 64 << 10  # bytes, which take a millisecond to read
# Commas and colons of a JSON body: each may stand before a value that is wrong, of which pydantic makes an error, with
# the GIL held. A million of them, in 12 MB, had nobody answered for seven seconds; a body of any client has hundreds.
_VALUES = 20_000

Body = TypeVar("Body", bound=BaseModel)


async def read_body(request: Request, kind: type[Body], most: int) -> Body:
    """Read a JSON body of at most `most` bytes as a `kind`. Errors: InvalidRequest, HttpError, Cancelled."""
    sent = request.headers.get("content-type", "")
    if sent.partition(";")[0].strip().lower() != "application/json":
        raise HttpError(415, f"content-type is {sent[:64]!r}; it must be application/json")
    data = await _read(request, most)
    if (values := data.count(b",") + data.count(b":")) > _VALUES:
        raise InvalidRequest(f"the body has {values} commas and colons; at most {_VALUES} are read")
    try:
        if len(data) > _LARGE:
            return await asyncio.to_thread(kind.model_validate_json, data)
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise refusal_of(error, list(kind.model_fields)) from None


async def read_form(
    request: Request, kind: type[Body], files: Sequence[str], most: int
) -> tuple[Body, dict[str, bytes]]:
    """Read a form (multipart/form-data) of at most `most` bytes: its fields as a `kind`, and those of `files` as bytes.

    A file's name may end in `[]`; each is taken once. Nothing of it is written to a disk.
    Errors: InvalidRequest, HttpError, Cancelled.
    """
    sent = request.headers.get("content-type", "")
    if sent.partition(";")[0].strip().lower() != "multipart/form-data":
        raise HttpError(415, f"content-type is {sent[:64]!r}; it must be multipart/form-data")
    data = await _read(request, most)

    async def body() -> AsyncGenerator[bytes]:
        yield data

    # A field may be a picture in base64, and is no larger than the body.
    parser = MultiPartParser(request.headers, body(), max_files=8, max_fields=64, max_part_size=most)
    parser.spool_max_size = most + 1
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        reason = error.message if isinstance(error, MultiPartException) else "its boundary or a header is damaged"
        raise InvalidRequest(f"the body is not a form: {reason}") from None
    fields: dict[str, str] = {}
    pictures: dict[str, bytes] = {}
    async with form_closed(form):
        for name, value in form.multi_items():
            bare = name.removesuffix("[]")
            if isinstance(value, str) and bare in files and name not in kind.model_fields:
                raise InvalidRequest(f"{bare} is text; it takes a file of the form, and no URL is fetched", bare)
            elif isinstance(value, str):
                fields[name] = value
            elif bare not in files:
                raise UnknownField(f"there is no file {name[:64]!r}; there are: {', '.join(files)}", name[:64])
            elif bare in pictures:
                raise InvalidRequest(f"{bare} is sent more than once; one picture is taken", bare)
            else:
                pictures[bare] = await value.read()
    try:
        if len(data) > _LARGE:
            return await asyncio.to_thread(kind.model_validate, fields), pictures
        return kind.model_validate(fields), pictures
    except ValidationError as error:
        raise refusal_of(error, list(kind.model_fields)) from None


@contextlib.asynccontextmanager
async def form_closed(form: FormData) -> AsyncGenerator[None]:
    """Close a form's files at the end."""
    try:
        yield
    finally:
        await form.close()


def schema_of(kind: type[BaseModel]) -> dict[str, Any]:
    """Describe a body for OpenAPI."""
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": kind.model_json_schema()}}},
    }


def form_schema_of(kind: type[BaseModel], files: Sequence[str], needed: Sequence[str]) -> dict[str, Any]:
    """Describe a form for OpenAPI: the fields of `kind`, and files of which some are `needed`."""
    schema = kind.model_json_schema()
    schema["properties"] |= {name: {"type": "string", "format": "binary"} for name in files}
    schema["required"] = [*schema.get("required", []), *needed]
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


async def _read(request: Request, most: int) -> bytes:
    """Errors: HttpError when the body is too large; Cancelled when its sender goes away."""
    too_large = HttpError(413, f"the body has more than {most} bytes (--max-message)", "RESOURCE_EXHAUSTED")
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length[:20]) > most:
        raise too_large
    data = bytearray()
    try:
        async for part in request.stream():
            data += part
            if len(data) > most:
                raise too_large
    except ClientDisconnect:
        raise Cancelled("the client went away") from None
    return bytes(data)


def refusal_of(error: ValidationError, known: Sequence[str]) -> InvalidRequest:
    """Say what is wrong first, by name. Values are not repeated but numbers: a prompt has no place in the log."""
    wrong = error.errors(include_url=False, include_context=False)
    first = wrong[0]
    if first["type"] == "missing":  # a field that nobody knows is more likely what it should have been called
        first = next((each for each in wrong if each["type"] == "extra_forbidden"), first)
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).removeprefix(".")
    match first["type"]:
        case "extra_forbidden":
            return UnknownField(
                f"there is no field {field[:64]!r}{meant(field[:64], known)}; there are: {', '.join(known)}", field[:64]
            )
        case "missing":
            return MissingField(f"{field} is missing", field)
        case "json_invalid":
            return InvalidRequest(f"the body is not JSON: {first['msg'].removeprefix('Invalid JSON: ')}")
        case "value_error":  # of a validator of ours
            return InvalidRequest(f"{field} {first['msg'].removeprefix('Value error, ')}", field)
    should = first["msg"].replace("Input should be", "it should be")
    if not field:
        return InvalidRequest(f"the body is {_shown(first['input'])}; {should}")
    return InvalidRequest(f"{field} is {_shown(first['input'])}; {should}", field)


def _shown(value: object) -> str:
    if isinstance(value, bool | int | float):
        return str(value)[:64]
    kinds = {str: "a text", list: "a list", dict: "an object"}
    return "null" if value is None else kinds.get(type(value), "something else")


__all__ = ["form_schema_of", "read_body", "read_form", "refusal_of", "schema_of"]
