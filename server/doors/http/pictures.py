"""Pictures in a JSON body: base64, perhaps as a data: URL, decoded where the body is read."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated

from pydantic import PlainValidator, WithJsonSchema


def decoded(text: object) -> bytes:
    """Decode a picture file. Errors: ValueError with the rest of a sentence that begins with the field."""
    if isinstance(text, str) and text[:8].lower().startswith(("http://", "https://")):
        raise ValueError("is a URL, and none is fetched: it takes a picture in base64")
    try:
        return _decoded(text)
    except ValueError:
        raise ValueError("is not a picture in base64") from None


def _decoded(text: object) -> bytes:
    if not isinstance(text, str):
        raise ValueError(type(text).__name__)
    if text.startswith("data:"):
        _, comma, text = text.partition(",")
        if not comma:
            raise ValueError("data:")
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        # In lines, as MIME and the command base64 write it; A1111 takes that too.
        return base64.b64decode(text.encode("ascii").translate(None, b" \t\r\n"), validate=True)


# A field of a body; a large body is read beside the event loop, and this with it.
Picture = Annotated[
    bytes,
    PlainValidator(decoded),
    WithJsonSchema({"type": "string", "contentEncoding": "base64", "contentMediaType": "image/*"}),
]

__all__ = ["Picture", "decoded"]
