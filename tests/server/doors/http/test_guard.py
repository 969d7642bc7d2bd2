"""Whom a browser may ask for, and from which page."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator

import pytest

from engines.model import Model
from server.app import Server
from server.doors.http.guard import Guard
from tests.support.patience import PATIENCE
from tests.support.serving import serving


@pytest.fixture(scope="module")
def server(model: Model) -> Iterator[Server]:
    with serving(model, http_port=0, allow_host=("images.example.org",), max_message=2048) as server:
        yield server


def answer(
    server: Server, path: str, method: str = "GET", body: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body; headers are named with underscores. A Host of None is the address's."""
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=PATIENCE)
    connection.putrequest(method, path, skip_host="host" in headers)
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    if body is not None:
        connection.putheader("content-length", str(len(body)))
    connection.endheaders(body)
    got = connection.getresponse()
    result = got.status, {name.lower(): value for name, value in got.getheaders()}, got.read()
    connection.close()
    return result


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("localhost", 200),
        ("LocalHost:1", 200),
        ("page.localhost:8000", 200),
        ("[::1]:8000", 200),
        ("10.1.2.3", 200),  # an address is not a name that somebody else can give to us
        ("images.example.org", 200),
        ("evil.example", 403),
        ("evil.example:8000", 403),
        ("127.0.0.1.evil.example", 403),
        ("", 403),
        ("a:b:c", 403),
    ],
)
def test_a_name_that_is_not_ours_is_refused(host: str, status: int, server: Server) -> None:
    """What a page of another site reaches by having its own name resolve to this machine (DNS rebinding)."""
    assert answer(server, "/v1/models", host=host)[0] == status
    assert answer(server, "/readyz", host=host)[0] == 200, "probes may use any"


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://127.0.0.1:8000", 200),
        ("http://127.0.0.1:3000", 403),
        ("http://localhost:8000", 403),  # the host asked for is another
        ("https://images.example.org", 200),
        ("http://evil.example", 403),
        ("null", 403),
        ("file://", 403),
        ("http://[", 403),
    ],
)
def test_another_sites_page_is_refused(origin: str, status: int, server: Server) -> None:
    got, _, body = answer(server, "/v1/models", host="127.0.0.1:8000", origin=origin)
    assert got == status
    if status == 403:
        assert json.loads(body)["error"]["message"].startswith(f"origin is {origin!r}: ")


def test_a_link_may_lead_here_and_nothing_else(server: Server) -> None:
    assert answer(server, "/readyz", sec_fetch_site="cross-site", sec_fetch_mode="navigate")[0] == 200
    assert answer(server, "/readyz", sec_fetch_site="cross-site", sec_fetch_mode="no-cors")[0] == 403
    assert answer(server, "/readyz", sec_fetch_site="same-origin", sec_fetch_mode="cors")[0] == 200
    post = answer(server, "/sdapi/v1/interrupt", "POST", b"", sec_fetch_site="cross-site", sec_fetch_mode="navigate")
    assert post[0] == 403


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/nope", "/v1/models", "/api/model", "/openapi.json"])
def test_every_answer_has_the_headers(path: str, server: Server) -> None:
    _, headers, _ = answer(server, path, x_request_id="order-66")
    assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'; ")
    assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
    assert headers["x-request-id"] == "order-66"
    assert "server" not in headers and "access-control-allow-origin" not in headers


def test_head_is_answered_as_get_is_without_a_body(server: Server) -> None:
    for path in ("/", "/healthz", "/readyz"):
        status, headers, body = answer(server, path, "HEAD")
        assert (status, body) == (200, b"") and headers["content-length"] != "0"


def test_paths_and_methods_that_there_are_not(server: Server) -> None:
    for path, method, status in (
        ("/nope", "GET", 404),
        ("/v1/nope", "GET", 404),
        ("/sdapi/v1/nope", "GET", 404),
        ("/static/../server/app.py", "GET", 404),
        ("/static/%2e%2e/server/app.py", "GET", 404),
        ("/v1/images/generations", "GET", 405),
        ("/docs", "GET", 404),
    ):
        got, _, body = answer(server, path, method)
        assert got == status and "error" in json.loads(body)


def test_bodies(server: Server) -> None:
    for body, kind, status, told in (
        (b"{}", "text/plain", 415, "content-type is 'text/plain'; it must be application/json"),
        (b"{}", "", 415, "content-type is ''; it must be application/json"),
        (b" " * 2049, "application/json", 413, "the body has more than 2048 bytes (--max-message)"),
        (b"[1]", "application/json", 400, "the body is a list; it should be an object"),
        (b"{", "application/json", 400, "the body is not JSON: EOF while parsing an object at line 1 column 1"),
        (b"\xff", "application/json", 400, "the body is not JSON: "),
        (b'{"prompt": "\\ud800"}', "application/json; charset=utf-8", 400, "the body is not JSON: "),
        (b"[" * 2000, "application/json", 400, "the body is not JSON: "),
        (b'{"promt": "a"}', "application/json", 400, "there is no field 'promt'; did you mean prompt?; there are: "),
        (b'{"steps": NaN}', "application/json", 400, "steps is nan; it should be a valid integer"),
        (b'{"guidance": NaN}', "application/json", 400, "guidance is nan; it must be 0 to 30"),
        (b'{"steps": "7"}', "application/json", 400, "steps is a text; it should be a valid integer"),
        (b'{"seed": 4294967296}', "application/json", 400, "seed is 4294967296; it must be 0 to 4294967295"),
        (b'{"seed": ' + b"9" * 2000 + b"}", "application/json", 400, "seed is "),
        (b'{"priority": 2147483648}', "application/json", 400, "priority is 2147483648; it must be -2147483648 to "),
        (b'{"preview_every": -1}', "application/json", 400, "preview_every is -1; it must be 0 to 4294967295"),
    ):
        got, _, said = answer(server, "/api/generate", "POST", body, content_type=kind)
        error = json.loads(said)["error"]
        assert (got, error["message"][: len(told)]) == (status, told)
    body = b'{"prompt": "secret apple", "steps": "secret", "negative_prompt": ["secret"]}'
    _, _, said = answer(server, "/api/generate", "POST", body, content_type="application/json")
    assert b"secret" not in said, "what is said is logged too"


def test_a_body_in_chunks_is_limited_too(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.http_port or 0), PATIENCE) as wire:
        head = b"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        wire.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n" + b"400\r\n" + b" " * 1024 + b"\r\n")
        wire.sendall((b"400\r\n" + b" " * 1024 + b"\r\n") * 2)
        assert wire.recv(4096).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("sent", ["soon", "-1", "0", "1.5", "", "9" * 30])
def test_a_deadline_that_is_none(sent: str, server: Server) -> None:
    headers = {"content_type": "application/json", "x_deadline_ms": sent}
    got, _, said = answer(server, "/api/generate", "POST", b"{}", **headers)
    error = json.loads(said)["error"]
    assert (got, error["field"]) == (400, "x-deadline-ms") and "it takes milliseconds" in error["message"]


def test_a_server_that_others_reach_goes_by_the_machines_name() -> None:
    async def nothing(*_) -> None:
        raise AssertionError

    mine = socket.gethostname().lower()
    assert Guard(nothing, "0.0.0.0").knows(mine) and Guard(nothing, "gpu.example.org").knows("gpu.example.org")
    assert not Guard(nothing, "0.0.0.0").knows("gpu.example.org")
