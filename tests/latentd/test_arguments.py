"""What the clients say of arguments that cannot be: options of a request, timeouts, addresses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from latentd import ServerError, errors
from latentd.__main__ import main
from latentd.channel import server_address
from tests.support.clients import both, plain
from tests.support.fake import FakeServer
from tests.support.patience import PATIENCE


@both
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seed": 2**32}, "seed is 4294967296; it must be 0 to 4294967295"),
        ({"steps": -1}, "steps is -1; it must be 1 or more, up to the model's limit"),
        ({"images": 2**32}, "images is 4294967296; it must be 1 or more, up to the model's limit"),
        ({"clip_skip": -1}, "clip_skip is -1; it must be 0 or more, up to the model's limit"),
        ({"quality": 101}, "quality is 101; it must be 0 to 100"),
        (
            {"init_image": "https://example.org/a.png"},
            "init_image is 'https://example.org/a.png', a URL; it takes a file",
        ),
        ({"style_image": "data:image/png;base64,"}, "style_image is 'data:image/png;base64,', a URL"),
        ({"format": "gif"}, "format 'gif' is not one of png, jpeg, webp"),
        ({"priority": 2**31}, "priority is 2147483648; it must be -2147483648 to 2147483647"),
        ({"negative_prompt": "\udcff"}, "negative_prompt is not valid UTF-8 at character 0"),
    ],
)
def test_what_a_message_cannot_hold_is_refused_here(call: Any, options: dict, words: str, nobody: str) -> None:
    with pytest.raises(ValueError, match=words):
        call(nobody, "generate", "an apple", **options)


@both
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": "12"}, "steps is '12'; it takes a whole number"),
        ({"steps": 12.5}, "steps is 12.5; it takes a whole number"),
        ({"seed": 7.0}, "seed is 7.0; it takes a whole number"),
        ({"priority": None}, "priority is None; it takes a whole number"),
        ({"guidance": "7"}, "guidance is '7'; it takes a number"),
        ({"guidance": [7]}, r"guidance is \[7\]; it takes a number"),
        ({"sampler": 3}, "sampler is 3; it takes text"),
        ({"model": None}, "model is None; it takes text"),
        ({"negative_prompt": b"pear"}, "negative_prompt is b'pear'; it takes text"),
        ({"loras": "ink"}, "loras is 'ink'; it takes names with weights, such as {'name': 0.8}"),
        ({"loras": ["ink"]}, r"loras has 'ink'; each is a name and a weight"),
        ({"loras": {"ink": "0.8"}}, "loras is '0.8'; it takes a number"),
        ({"long_prompt": "no"}, "long_prompt is 'no'; it takes True or False"),
        ({"timeout": "3"}, "timeout is '3'; it takes a number"),
    ],
)
def test_a_value_of_another_kind_is_named(call: Any, options: dict, words: str, nobody: str) -> None:
    with pytest.raises(TypeError, match=f"^{words}$"):
        call(nobody, "generate", "an apple", **options)


@both
@pytest.mark.parametrize("method", ["generate", "stream"])
@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("size", "width and height"),
        ("num_inference_steps", "steps"),
        ("step", "steps"),
        ("image", "init_image"),
        ("colour", None),
    ],
)
def test_an_option_that_there_is_not(call: Any, method: str, name: str, meant: str | None, nobody: str) -> None:
    near = f"; did you mean {meant}[?]" if meant else ""
    with pytest.raises(TypeError, match=f"^there is no option '{name}'{near}; there are: negative_prompt, width, "):
        call(nobody, method, "an apple", **{name: 3})


@both
@pytest.mark.parametrize("prompt", [5, None, b"an apple", ["an apple"]])
def test_a_prompt_is_text(call: Any, prompt: Any, nobody: str) -> None:
    with pytest.raises(TypeError, match="^prompt is .*; it takes text$"):
        call(nobody, "generate", prompt)


@both
def test_numbers_of_other_libraries_are_numbers(call: Any, server: FakeServer) -> None:
    numpy = pytest.importorskip("numpy")
    call(server.address, "generate", "an apple", steps=numpy.int64(3), guidance=numpy.float32(1.5), timeout=PATIENCE)
    (request,) = server.images.requests
    assert (request.steps, request.guidance) == (3, 1.5)


@both
@pytest.mark.parametrize("method", [("generate", "an apple"), ("models",)])
@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan")])
def test_a_timeout_is_a_number_of_seconds(call: Any, method: tuple[str, ...], timeout: float, nobody: str) -> None:
    with pytest.raises(ValueError, match="timeout .*is not a number"):
        call(nobody, *method, timeout=timeout)


@both
def test_an_empty_prompt_is_a_prompt(call: Any, server: FakeServer) -> None:
    assert len(call(server.address, "generate", "")) == 1


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("127.0.0.1", "127.0.0.1:8001"),
        ("localhost", "localhost:8001"),
        ("gpu-1.example.org", "gpu-1.example.org:8001"),
        ("gpu-1.example.org:80", "gpu-1.example.org:80"),
        ("::1", "[::1]:8001"),
        ("[::1]", "[::1]:8001"),
        ("[::1]:9", "[::1]:9"),
        ("2001:db8::7", "[2001:db8::7]:8001"),
        ("unix:/run/latentd.sock", "unix:/run/latentd.sock"),
        ("dns:///gpu.example.org:80", "dns:///gpu.example.org:80"),
        ("dns:53", "dns:53"),
    ],
)
def test_an_address_without_a_port_has_the_servers(given: str, address: str) -> None:
    assert server_address(given) == address


@pytest.mark.parametrize(
    "given", ["localhost:", ":8001", "a b", "a:b", "a:0", "a:65536", "a/b:1", "[::1", "a:1:2", " "]
)
def test_what_is_no_address_is_refused(given: str) -> None:
    with pytest.raises(ValueError, match="is not host:port, such as 127.0.0.1:8001"):
        server_address(given)


def test_who_has_no_makefile_is_told_of_no_make(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, nobody: str) -> None:
    monkeypatch.setattr(errors, "__file__", str(tmp_path / "latentd" / "errors.py"))
    with pytest.raises(ServerError, match=f"^no latentd server answers at {nobody}; start one with `latentd serve`$"):
        plain(nobody, "models")


@pytest.mark.parametrize("host", ["127.0.0.1", "example.org"])
def test_other_ports_are_not_grpcs(host: str) -> None:
    assert errors._hint(f"{host}:8000") == "; 8000 is usually the port of the page, and gRPC's is 8001"
    assert errors._hint(f"{host}:8002") == "; 8002 is usually the port of the metrics, and gRPC's is 8001"


def test_another_machines_server_is_not_ours_to_start(nobody: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "is_local", lambda address: False)
    with pytest.raises(ServerError, match=f"^no latentd server answers at {nobody}$"):
        plain(nobody, "models")


def test_the_prompt_serve(server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first word alone means the server."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LATENTD_SERVER", server.address)
    for arguments in (["--", "serve"], ["--steps", "2", "serve"], ["serve a meal"]):
        assert main(arguments) == 0
    assert [request.prompt for request in server.images.requests] == ["serve", "serve", "serve a meal"]
