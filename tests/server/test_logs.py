from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from server import logs


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def say() -> None:
    log = logging.getLogger("latentd.test")
    log.info("hello", extra={"request": "abc"})
    log.info("nobody's")
    try:
        raise ValueError("inner")
    except ValueError:
        log.exception("failed", extra={"request": "def"})


def test_text_has_the_requests_id_on_the_line_itself(capsys: pytest.CaptureFixture[str]) -> None:
    logs.start_logging("text")
    say()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith(" INFO latentd.test hello request=abc")
    assert lines[1].endswith(" INFO latentd.test nobody's")
    assert lines[2].endswith(" ERROR latentd.test failed request=def")
    assert lines[3].startswith("Traceback") and lines[-1] == "ValueError: inner"


def test_a_line_names_its_request_s_trace(capsys: pytest.CaptureFixture[str]) -> None:
    class Traced(str):
        trace_id = "4bf9"

    for format, told in (("text", " request=abc trace_id=4bf9"), ("json", '"request": "abc", "trace_id": "4bf9"}')):
        logs.start_logging(format)
        logging.getLogger("latentd.test").info("hello", extra={"request": Traced("abc")})
        assert capsys.readouterr().err.rstrip().endswith(told)


def test_json_is_a_line_an_event(capsys: pytest.CaptureFixture[str]) -> None:
    logs.start_logging("json")
    say()
    first, second, third = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert (first["level"], first["logger"], first["message"], first["request"]) == (
        "INFO",
        "latentd.test",
        "hello",
        "abc",
    )
    assert "request" not in second
    assert third["request"] == "def" and "ValueError: inner" in third["traceback"]
