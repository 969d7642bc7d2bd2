"""Keys in a server: whom it starts for, whose calls are whose, and what a key's fields do."""

from __future__ import annotations

import asyncio
import logging
import queue
from pathlib import Path
from typing import Any

import grpc
import openai
import pytest
import webuiapi

from engines.model import Model
from latentd import AsyncClient, Client, ServerError
from pipeline.errors import LatentdError
from server.access.gate import Gate
from server.app import Server
from server.doors.oip.inference import inference_pb2 as pb
from server.settings import Settings
from tests.support import oip
from tests.support.certificates import Authority, put
from tests.support.held import Held, eventually
from tests.support.keys import entry, token, write_keys
from tests.support.patience import PATIENCE
from tests.support.serving import address, http, metric, nothing_left, quick, serving


def gate(**settings: Any) -> Gate:
    return Gate(Settings(**settings), lambda why: None)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.yaml"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "gpu.example.org", ""])
def test_nothing_listens_to_others_without_keys_unless_that_is_meant(host: str, file: Path) -> None:
    with pytest.raises(LatentdError) as refused:
        gate(host=host)
    told = str(refused.value)
    assert repr(host) in told and "--keys FILE" in told and "--insecure" in told
    gate(host=host, insecure=True)
    gate(host=host, keys=write_keys(file, entry("a")))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "::1", "localhost"])
def test_this_machine_needs_no_keys(host: str) -> None:
    gate(host=host)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("tls_cert",), "tls_key is not set; TLS takes both tls_cert and tls_key"),
        (("tls_key",), "tls_cert is not set"),
        (("tls_client_ca",), "tls_cert is not set"),
    ],
)
def test_settings_that_lack_one_another(given: tuple[str, ...], told: str, tmp_path: Path) -> None:
    cert, key = put(tmp_path, "server", Authority().sign())
    files: dict[str, Any] = {"tls_cert": cert, "tls_key": key, "tls_client_ca": cert}
    with pytest.raises(LatentdError, match=told):
        gate(**{name: files[name] for name in given})


def test_a_file_of_keys_that_cannot_be_read_starts_nothing(tmp_path: Path) -> None:
    with pytest.raises(LatentdError, match="cannot be read: No such file"):
        gate(keys=tmp_path / "none")


def test_callers_are_keys_and_not_addresses(wired: Model, held: Held, file: Path) -> None:
    """Their calls at once, their weight, and that one's are not the other's."""
    write_keys(file, entry("a", weight=3), entry("b", calls=2))
    with serving(wired, keys=file, max_calls_caller=1) as server:
        held.hold()
        clients = {name: Client(address(server), key=token(name)) for name in "ab"}
        first = clients["a"].stream("a red apple", steps=1)
        next(first)
        held.begun()
        with pytest.raises(ServerError, match="1 calls of key:a are open; at most 1 of a caller may be"):
            clients["a"].generate("a red apple", steps=1)
        second = clients["b"].stream("a red apple", steps=1)
        next(second)
        device = server.service.device
        assert device
        eventually(lambda: sorted((job.caller, job.weight) for job in device._jobs), [("key:a", 3), ("key:b", 1)])
        held.release()
        assert list(first) and list(second)
        nothing_left(server)


def test_a_key_s_calls_are_fewer_than_a_caller_s(wired: Model, held: Held, file: Path) -> None:
    write_keys(file, entry("a", calls=1))
    with serving(wired, keys=file) as server, Client(address(server), key=token("a")) as client:
        held.hold()
        first = client.stream("a red apple", steps=1)
        next(first)
        held.begun()
        with pytest.raises(ServerError, match="1 calls of key:a are open; at most 1 ") as refused:
            client.generate("a red apple", steps=1)
        assert refused.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED and refused.value.retry_after
        held.release()
        assert list(first)


def test_a_key_s_priority_is_its_own(model: Model, file: Path) -> None:
    write_keys(file, entry("a", priority=2), entry("b"))
    with serving(model, keys=file, priority_callers=("127.0.0.1",)) as server:
        with Client(address(server), key=token("a")) as client:
            assert client.generate("a cat", steps=1, priority=2) and client.generate("a cat", steps=1, priority=-3)
            with pytest.raises(ServerError, match="priority is 3; it must be at most 2, which is what key:a may ask"):
                client.generate("a cat", steps=1, priority=3)
        with Client(address(server), key=token("b")) as client, pytest.raises(ServerError, match="must be at most 0"):
            client.generate("a cat", steps=1, priority=1)


def test_what_runs_when_its_key_goes_is_finished_and_logged_by_its_name(
    wired: Model, held: Held, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The entry is taken out while the picture is drawn; the next call is refused."""
    caplog.set_level(logging.INFO, "latentd.request")
    write_keys(file, entry("a"), entry("b"))
    with serving(wired, keys=file) as server, Client(address(server), key=token("a")) as client:
        held.hold()
        first = client.stream("a red apple", steps=1)
        next(first)
        held.begun()
        write_keys(file, entry("b"))
        with pytest.raises(ServerError, match="was revoked"):
            client.models()
        held.release()
        assert list(first)
        nothing_left(server)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "latentd.request"]
    assert "code=OK" in line and " caller=key:a " in line


def test_limits_that_are_lowered_count_for_what_comes_next(wired: Model, held: Held, file: Path) -> None:
    write_keys(file, entry("a", calls=2, weight=3, priority=1))
    with serving(wired, keys=file) as server, Client(address(server), key=token("a")) as client:
        held.hold()
        running = [client.stream("a red apple", steps=1, priority=1) for _ in range(2)]
        for each in running:
            next(each)
        held.begun()
        write_keys(file, entry("a", calls=1))
        with pytest.raises(ServerError, match="2 calls of key:a are open; at most 1 of a caller may be"):
            client.models()
        device = server.service.device
        assert device and [(job.weight, job.wish.priority) for job in device._jobs] == [(3, 1)] * 2
        held.release()
        assert all(list(each) for each in running)
        nothing_left(server)
        with pytest.raises(ServerError, match="priority is 1; it must be at most 0"):
            client.generate("a cat", steps=1, priority=1)


def test_the_metrics_tell_of_a_file_that_cannot_be_read_anew(model: Model, file: Path) -> None:
    """A key that it revokes still counts, and somebody must hear of it."""
    with serving(model, keys=write_keys(file, entry("a"))) as server, Client(address(server), key=token("a")) as client:
        told = server.metrics.registry.get_sample_value
        assert told("latentd_files_stale", {"model": model.id, "file": "keys"}) == 0
        file.write_text("keys: [{name: a, revoked: true")
        assert client.models() and metric(server, "files_stale", file="keys") == 1
        write_keys(file, entry("a"), entry("b"))
        assert client.models() and metric(server, "files_stale", file="keys") == 0


def test_a_key_that_floods_leaves_the_other_its_share(wired: Model, held: Held, file: Path) -> None:
    """Eight pictures of 150 steps; the other's four steps are each shared, after the step that was under way."""
    write_keys(file, entry("flood"), entry("other"))

    async def both(server: Server) -> int:
        where = address(server)
        async with AsyncClient(where, key=token("flood")) as flood, AsyncClient(where, key=token("other")) as other:
            flooding = asyncio.create_task(flood.generate("a red apple", steps=150, images=8))
            for _ in range(3):
                await asyncio.to_thread(held.begun)
                held.let()
            await asyncio.to_thread(held.begun)
            asking = asyncio.create_task(other.generate("a cat", steps=4))
            device = server.service.device
            while device is None or len(device._jobs) < 2:
                await asyncio.sleep(0)
            before, decoded = len(held.runs), list[int]()
            held.before_decode = lambda: decoded.append(len(held.runs))
            held.release()
            await asking
            flooding.cancel()
            await asyncio.gather(flooding, return_exceptions=True)
            return decoded[0] - before  # the first picture is the other's: the flood's take 150 steps

    with serving(wired, seats=8, keys=file) as server:
        quick(server)
        held.hold()
        steps = asyncio.run(both(server))
        nothing_left(server)
    assert steps < 30, "of the flood's 150"


def test_a_key_that_is_revoked_ends_what_comes_next_on_a_stream_too(model: Model, file: Path) -> None:
    write_keys(file, entry("a"), entry("b", rate=2))
    requests: queue.Queue[pb.ModelInferRequest | None] = queue.Queue()
    with serving(model, keys=file) as server, grpc.insecure_channel(address(server)) as channel:
        name = f"{server.service.model_id}.stream"
        metadata = (("authorization", f"Bearer {token('a')}"),)
        call = oip.method(channel, "ModelStreamInfer")(iter(requests.get, None), timeout=PATIENCE, metadata=metadata)
        requests.put(oip.request(name, prompt="a", steps=1))
        assert not next(call).error_message
        write_keys(file, entry("a", revoked=True), entry("b", rate=2))
        requests.put(oip.request(name, prompt="a", steps=1))
        told = [answer.error_message for answer in (next(call), next(call))]
        assert any("was revoked" in each for each in told), told
        requests.put(None)
        call.cancel()
        with Client(address(server), key=token("a")) as client, pytest.raises(ServerError, match="was revoked"):
            client.models()
        # And one's rate counts there: two requests of a minute, by one stream.
        metadata = (("authorization", f"Bearer {token('b')}"),)
        three = [oip.request(name, prompt="a", steps=1, id=str(number)) for number in range(3)]
        answers = list(oip.method(channel, "ModelStreamInfer")(iter(three), timeout=PATIENCE, metadata=metadata))
        refused = [answer.error_message for answer in answers if answer.error_message]
        assert refused == ["key:b asks more often than 2 times a minute"]


def test_other_people_s_clients_bring_keys_their_way(model: Model, file: Path) -> None:
    write_keys(file, entry("a"))
    with serving(model, keys=file, http_port=0) as server:
        with openai.OpenAI(base_url=f"{http(server)}/v1", api_key=token("a"), max_retries=0) as client:
            assert [one.id for one in client.models.list()] == [model.id]
        with openai.OpenAI(base_url=f"{http(server)}/v1", api_key="sk-other", max_retries=0) as client:
            with pytest.raises(openai.AuthenticationError) as refused:
                client.models.list()
            assert refused.value.code == "invalid_api_key"
        theirs = {"host": "127.0.0.1", "port": server.http_port}
        api = webuiapi.WebUIApi(**theirs, username="anybody", password=token("a"))
        assert api.txt2img(prompt="a red apple", steps=1, width=24, height=24).image.size == (24, 24)
        with pytest.raises(RuntimeError, match="401"):
            webuiapi.WebUIApi(**theirs, username="anybody", password="wrong").txt2img(prompt="a", steps=1)
