"""Swaps of the served model: while requests run, refused, cancelled, and by whom."""

from __future__ import annotations

import asyncio
import gc
import json
import shutil
import signal
import threading
import weakref
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from engines.model import Model
from latentd import AsyncClient, ServerError
from latentd.swap import run as swap_command
from latentd.v1 import admin_pb2 as pb
from latentd.v1.admin_pb2_grpc import AdminStub
from pipeline.errors import CheckpointError
from server.app import Server
from server.models.room import Room
from server.settings import Settings, SettingsError
from tests.support import oip
from tests.support.checkpoints import make_checkpoint
from tests.support.held import Held, eventually, wrapped
from tests.support.jobs import Pixels, alone, decoded
from tests.support.keys import entry, token, write_keys
from tests.support.patience import PATIENCE
from tests.support.server_process import FREE, process
from tests.support.serving import address
from tests.support.swaps import Make, Operator, administered, cuda, drawn, host, openvino
from tests.support.visitor import Visitor

STAGES = [pb.STAGE_CHECKING, pb.STAGE_LOADING, pb.STAGE_MAKING, pb.STAGE_MEASURING, pb.STAGE_DRAINING, pb.STAGE_DONE]
SEEDS = range(3)
STEPS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of one architecture, and what is none: damaged, of an unknown kind, and a link that leads away."""
    folder = tmp_path_factory.mktemp("admin") / "models"
    for seed, name in enumerate("ab"):
        make_checkpoint(folder / name, seed=10 * seed)
    shutil.copytree(folder / "b", folder / "short")
    weights = folder / "short/unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    shutil.copytree(folder / "b", folder / "unknown")
    for name in ("scheduler/scheduler_config.json", "model_index.json"):
        config = folder / "unknown" / name
        config.write_text(config.read_text().replace("DDIMScheduler", "NobodysScheduler"))
    shutil.copytree(folder / "b", folder / "nan")
    weights = folder / "nan/vae/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-2] + b"\x00\x7e")  # the last number, in float16
    make_checkpoint(folder.parent / "elsewhere")
    (folder / "away").symlink_to(folder.parent / "elsewhere")
    (folder / "notes.txt").write_text("no model")
    return folder


def in_time(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 4 * PATIENCE))


def user(server: Server) -> AsyncClient:
    return AsyncClient(address(server), key=token("user"))


def drawn_alone(model: Model, seed: int) -> Pixels:
    return alone(model, prompt="a red apple", seed=seed, steps=STEPS)


async def command(server: Server, *words: str) -> int:
    """Run `latentd swap` with an admin's key; its exit code."""
    flags = ("--server", address(server), "--key", token("op"))
    return await asyncio.to_thread(swap_command, [*words, *flags], "latentd swap")


def told_by_doors(server: Server, name: str) -> list[str]:
    """The model that each door tells of; the Open Inference Protocol's is asked for by its name."""
    visitor, told = Visitor(token("user")), []
    for path, where in (("/api/model", ["id"]), ("/v1/models", ["data", 0, "id"]), ("/sdapi/v1/sd-models", [0])):
        connection = visitor.connection(server.http_port)
        connection.request("GET", path, headers=visitor.headers())
        answer: Any = json.loads(connection.getresponse().read())
        for key in where:
            answer = answer[key]
        told.append(answer["model_name"] if isinstance(answer, dict) else answer)
        connection.close()
    with visitor.channel(server) as channel:
        asked = oip.pb.ModelMetadataRequest(name=name)
        told.append(oip.method(channel, "ModelMetadata")(asked, metadata=visitor.metadata(), timeout=PATIENCE).name)
        index = oip.method(channel, "RepositoryIndex")(
            oip.pb.RepositoryIndexRequest(), metadata=visitor.metadata(), timeout=PATIENCE
        )
        told.append(index.models[0].name)
    return told


@pytest.mark.parametrize("make", [host, cuda])
def test_three_swaps_under_load(make: Make, folder: Path) -> None:
    """No request fails, and each picture is to the bit its model's alone."""
    pictures: list[tuple[str, int, bytes]] = []
    models = {name: make(Settings(model=folder / name)) for name in "ab"}
    expected = {(name, seed): drawn_alone(models[name], seed) for name in "ab" for seed in SEEDS}

    async def draw(client: AsyncClient, worker: int, over: asyncio.Event) -> None:
        number = worker
        while not over.is_set():
            seed = SEEDS[number % len(SEEDS)]
            name, picture = await drawn(client, seed=seed, steps=STEPS, preview_every=worker % 2)
            pictures.append((name, seed, picture))
            number += 1

    async def life() -> None:
        over = asyncio.Event()
        async with administered(folder, make, seats=2) as server, user(server) as client, Operator(server) as operator:
            load = [asyncio.create_task(draw(client, worker, over)) for worker in range(3)]
            for name in ("b", "a", "b"):
                old = weakref.ref(server.service.devices[0])
                assert (await operator.swap(name))[-1] == pb.STAGE_DONE
                assert server.service.model_id == name == (await client.models())[0].id
                await asyncio.to_thread(_until, lambda old=old: gc.collect() >= 0 and old() is None)
                first = await drawn(client, seed=0, steps=STEPS)
                assert first[0] == name
            over.set()
            await asyncio.gather(*load)
            count = server.metrics.registry.get_sample_value
            labels = {"outcome": "done"}
            assert [count("latentd_swaps_total", {"model": each, **labels}) for each in "ab"] == [2, 1]
            told = {each: count("latentd_images_total", {"model": each}) for each in "ab"}
            drew = {each: sum(name == each for name, _, _ in pictures) for each in "ab"}
            assert told == {each: drew[each] + firsts for each, firsts in (("a", 1), ("b", 2))}
            assert count("latentd_queue_depth", {"model": "a"}) is None, "gauges of a model that is not here"

    in_time(life())
    assert {name for name, _, _ in pictures} == {"a", "b"}
    for name, seed, picture in pictures:
        np.testing.assert_array_equal(decoded(picture), expected[name, seed], f"{name} {seed}")
    assert all(not np.array_equal(expected["a", seed], expected["b", seed]) for seed in SEEDS)


def test_what_the_old_model_took_on_ends_there(folder: Path) -> None:
    """One of its requests sits and one waits when the new model takes over; those come first, the new one's after."""
    held: dict[str, Held] = {}
    models: dict[str, Model] = {}

    def make(settings: Settings) -> Model:
        name = settings.model.name
        models[name] = host(settings)
        held[name] = Held(models[name].backend)
        return wrapped(models[name], held[name])

    async def life() -> None:
        async with administered(folder, make, seats=1) as server, user(server) as client, Operator(server) as operator:
            service = server.service
            held["a"].hold()
            old = [asyncio.create_task(drawn(client, seed=seed, steps=STEPS)) for seed in (0, 1)]
            await asyncio.to_thread(held["a"].begun)
            call = operator.call("b")
            seen = []
            async for stage in call:
                seen.append(stage.stage)
                if stage.stage == pb.STAGE_MEASURING:
                    held["a"].let()  # the old one rests between two steps while the new one is measured
                if stage.stage == pb.STAGE_DRAINING:
                    assert stage.left == 2
                    break
            assert seen == STAGES[:5]
            await asyncio.to_thread(held["a"].begun)
            assert service.model_id == "b" and service.before is not None and service.before.model.id == "a"
            with pytest.raises(ServerError, match=r"model is 'a'; this server has b") as unknown:
                await client.generate("a red apple", model="a")
            assert unknown.value.code.name == "NOT_FOUND"
            runs = len(held["b"].runs)
            new = asyncio.create_task(drawn(client, seed=2, steps=STEPS))
            await asyncio.to_thread(_until, lambda: service.device is not None and service.device.jobs == 1)
            state = await operator.state()
            assert (state.model, state.swapping_to, state.stage.stage) == ("b", "b", pb.STAGE_DRAINING)
            assert (await operator.refused("a"))[0] == "FAILED_PRECONDITION"
            held["a"].let()
            await asyncio.to_thread(held["a"].begun)
            assert len(held["b"].runs) == runs, "the new one waits while the old one steps"
            assert service.before.owes and service.device and not service.device.owes, (
                "and is not stuck: see watchdog.py"
            )
            held["a"].release()
            assert [stage.stage async for stage in call] == [pb.STAGE_DONE]
            for seed, (name, picture) in enumerate([*await asyncio.gather(*old), await new]):
                assert name == ("b" if seed == 2 else "a")
                np.testing.assert_array_equal(decoded(picture), drawn_alone(models[name], seed), f"{name} {seed}")

    in_time(life())


def test_what_is_refused_changes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def life() -> None:
        async with administered(folder, host) as server, user(server) as client, Operator(server) as operator:
            device = server.service.device
            assert list((await operator.state()).models) == ["a", "b", "nan", "short", "unknown"]
            for name in ("c", "", "..", "../models/b", str(folder / "b"), "away", "notes.txt", "https://example.org/b"):
                code, sentence = await operator.refused(name)
                assert code == "NOT_FOUND" and sentence.endswith("it has a, b, nan, short, unknown"), (name, sentence)
            for name, reason in (("short", "not a whole"), ("unknown", "NobodysScheduler"), ("nan", "holds NaN")):
                code, sentence = await operator.refused(name)
                assert code == "FAILED_PRECONDITION" and reason in sentence and sentence.startswith(f"{name} is not")
            assert (await operator.refused("b", prediction="epsilon"))[0] == "FAILED_PRECONDITION"
            with monkeypatch.context() as patch:
                patch.setattr(server.succession, "_room", room := Room(lambda: 0, lambda: 1 << 20))
                room._took, room._weights = 1 << 30, 1
                code, sentence = await operator.refused("b")
                assert code == "RESOURCE_EXHAUSTED" and "would take about 1.10 GiB" in sentence, sentence
            assert await command(server) == 0 and await command(server, "c") == 1
            out, err = capsys.readouterr()
            first, *names, stage = out.splitlines()
            assert first.startswith("a is served, digest ") and stage.endswith(" s: checking")
            assert names == ["  a", "  b", "  nan", "  short", "  unknown"]
            assert err.startswith("latentd swap: model is 'c', which is not in the folder of models")
            async with Operator(server, "user") as stranger:
                assert (await stranger.refused("b"))[0] == "PERMISSION_DENIED"
            assert server.service.device is device and server.service.devices == [device]
            assert (await drawn(client, seed=0, steps=STEPS))[0] == "a"
            told = server.metrics.registry.get_sample_value
            assert told("latentd_swaps_total", {"model": "a", "outcome": "refused"}) == 14
            assert told("latentd_rows_capacity", {"model": "a"})
            assert told("latentd_rows_capacity", {"model": "nan"}) is None, "of one that never served"

    in_time(life())


def test_who_ends_the_call_before_it_serves_cancels_the_swap(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loading, go_on = threading.Event(), threading.Event()
    ended = ["the export ended with status -15"]  # as one that a cancelled swap waits for does

    def make(settings: Settings) -> Model:
        if settings.model.name == "b":
            loading.set()
            assert go_on.wait(PATIENCE)
            if ended:
                raise CheckpointError(ended.pop())
        return openvino(settings)

    async def life() -> None:
        administration = administered(folder, make, http_port=0)
        async with administration as server, user(server) as client, Operator(server) as operator:
            assert await asyncio.to_thread(told_by_doors, server, "a") == ["a"] * 5
            call = operator.call("b")
            watching = asyncio.create_task(_drained(call))
            await asyncio.to_thread(loading.wait, PATIENCE)
            code, sentence = await operator.refused("b")
            assert code == "FAILED_PRECONDITION" and "a swap to b is under way" in sentence, sentence
            call.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            count = server.metrics.registry.get_sample_value
            assert (await drawn(client, seed=0, steps=STEPS))[0] == "a"
            underway = server.succession and server.succession._underway
            assert underway
            await asyncio.to_thread(_until, lambda: underway.cancelled)
            go_on.set()
            await asyncio.to_thread(
                _until, lambda: count("latentd_swaps_total", {"model": "a", "outcome": "cancelled"}) == 1
            )
            await asyncio.to_thread(_until, lambda: server.succession and server.succession.underway is None)
            assert server.service.model_id == "a" and server.service.before is None
            assert await command(server, "b") == 0, "and the next one goes through"
            assert [line.partition(" s: ")[2] for line in capsys.readouterr().out.splitlines()] == [
                "checking",
                "loading",
                "making its engines",
                "measuring its pace",
                "serving; requests of the model before that are left: 0",
                "done: the model before is gone from memory",
            ]
            assert await asyncio.to_thread(told_by_doors, server, "b") == ["b"] * 5
            with pytest.raises(grpc.RpcError, match=r"model is 'a'; this server has b and b\.stream"):
                await asyncio.to_thread(told_by_doors, server, "a")

    in_time(life())


def test_a_server_that_stops_while_the_old_model_drains_ends_the_requests_of_both(folder: Path) -> None:
    """Within the grace, each by its own model; who swaps hears that it is done."""
    held: dict[str, Held] = {}
    models: dict[str, Model] = {}

    def make(settings: Settings) -> Model:
        name = settings.model.name
        models[name] = host(settings)
        held[name] = Held(models[name].backend)
        return wrapped(models[name], held[name])

    async def life() -> None:
        async with administered(folder, make, seats=1) as server, user(server) as client, Operator(server) as operator:
            held["a"].hold()
            old = asyncio.create_task(drawn(client, seed=0, steps=STEPS))
            await asyncio.to_thread(held["a"].begun)
            call = operator.call("b")
            async for stage in call:
                if stage.stage == pb.STAGE_MEASURING:
                    held["a"].let()
                if stage.stage == pb.STAGE_DRAINING:
                    break
            await asyncio.to_thread(held["a"].begun)
            new = asyncio.create_task(drawn(client, seed=1, steps=STEPS))
            await asyncio.to_thread(_until, lambda: server.service.device and server.service.device.jobs == 1)
            stopping = asyncio.create_task(server.close(2 * PATIENCE))
            await asyncio.to_thread(_until, lambda: server.service.draining)
            with pytest.raises(ServerError, match="draining"):
                await client.models()
            held["a"].release()
            for name, seed, (drew, picture) in (("a", 0, await old), ("b", 1, await new)):
                assert drew == name
                np.testing.assert_array_equal(decoded(picture), drawn_alone(models[name], seed), name)
            assert [stage.stage async for stage in call] == [pb.STAGE_DONE]
            await stopping

    in_time(life())


SLOW_SECOND = """
import sys, threading
from server import app
from server.__main__ import main

load = app.load_model

def load_or_wait(settings):
    if settings.model.name == "b":
        print("loading b", flush=True)
        threading.Event().wait()
    return load(settings)

app.load_model = load_or_wait
sys.exit(main(sys.argv[1:]))
"""


def test_sigterm_ends_a_server_that_makes_a_model(folder: Path) -> None:
    """Nobody waits for the thread that loads, which may be in a compiler; who swaps is told."""
    keys = write_keys(folder.parent / "keys.yaml", entry("op", admin=True))
    flags = ("--admin", "on", "--admin-models", folder, "--keys", keys)
    with process("-c", SLOW_SECOND, folder / "a", *flags, *FREE) as started:
        with grpc.insecure_channel(started.address()) as channel:
            stub: Any = AdminStub(channel)
            call = stub.Swap(pb.SwapRequest(model="b"), metadata=(("authorization", f"Bearer {token('op')}"),))
            started.says("loading b")
            started.popen.send_signal(signal.SIGTERM)
            with pytest.raises(grpc.RpcError) as told:
                list(call)
            assert told.value.code() is grpc.StatusCode.UNAVAILABLE  # type: ignore[attr-defined]
            assert told.value.details() == "the server stops, and b is not served"  # type: ignore[attr-defined]
        assert started.end() == 0


def test_admin_takes_a_folder_and_keys(folder: Path, tmp_path: Path) -> None:
    keys = write_keys(tmp_path / "keys.yaml", entry("op", admin=True))
    with pytest.raises(SettingsError, match="admin is on, and keys is not given"):
        Server(Settings(model=folder / "a", admin=True, admin_models=folder))
    with pytest.raises(SettingsError, match="admin is on, and admin_models is not given"):
        Server(Settings(model=folder / "a", admin=True, keys=keys))


def test_a_folder_that_nobody_may_swap_from_is_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def made() -> None:
        Server(Settings(model=folder / "a", admin_models=folder))

    asyncio.run(made())
    assert "admin_models is given, and admin is off: nobody can swap the model" in caplog.text


async def _drained(call: Any) -> None:
    async for _ in call:
        pass


def _until(what: Any) -> None:
    eventually(lambda: bool(what()), True)
