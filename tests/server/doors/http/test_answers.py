"""JSON with pictures in it, against what the standard library writes."""

from __future__ import annotations

import asyncio
import base64
import json
import os

import pytest

from server.doors.http.answers import encoded


@pytest.mark.parametrize("large", [0, 1 << 30], ids=["on the loop", "in a thread"])
def test_pictures_in_json_are_base64(large: int) -> None:
    pictures = [os.urandom(size) for size in (0, 1, 2, 3, 100_000)]
    told = 'a "red" apple \\ \n \u2028'
    content = {"prompt": told, "data": [{"b64_json": each, "seed": 7} for each in pictures], "last": pictures[4]}
    written = asyncio.run(encoded(content, large))
    as_text = json.loads(json.dumps(content, default=lambda data: base64.b64encode(data).decode()))
    assert json.loads(written) == as_text
    assert json.loads(asyncio.run(encoded({"prompt": told}, large))) == {"prompt": told}


def test_what_is_neither_json_nor_a_picture_is_a_fault() -> None:
    with pytest.raises(TypeError, match="^set$"):
        asyncio.run(encoded({"seeds": {1}}))
