"""python -m server as a process: signals, exit statuses, and one sentence where something is wrong."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from latentd import Client, ServerError
from latentd.events import Done, Image, Queued, Started
from pipeline.checkpoint.opened import Checkpoint
from pipeline.extras import install
from server.app import Server
from tests.support.server_process import FREE, SLOW_LOAD, Process, process

# The server, with a backend that the test holds: the steps wait while a file of this name is there.
HELD = """
import sys, time
from pathlib import Path
from server import app
from server.__main__ import main

gate, fault, load = Path(sys.argv[1]), Path(sys.argv[2]), app.load_model

def load_held(settings):
    model = load(settings)
    make = model.backend.denoiser
    def denoiser(*shape, **options):
        made = make(*shape, **options)
        run = made.run
        def held(own):
            while gate.exists():
                time.sleep(0.005)
            if fault.exists():
                from engines.errors import DeviceError
                raise DeviceError("lost")
            run(own)
        made.run = held
        return made
    model.backend.denoiser = denoiser
    return model

app.load_model = load_held
sys.exit(main(sys.argv[3:]))
"""


@contextlib.contextmanager
def held_server(checkpoint: Checkpoint, tmp_path: Path, *arguments: str) -> Iterator[Process]:
    """`tmp_path / "gate"` holds its steps while it exists; with `tmp_path / "fault"` they fail."""
    gate, fault = tmp_path / "gate", tmp_path / "fault"
    with process("-c", HELD, gate, fault, "--model", checkpoint.path, *FREE, *arguments) as started:
        yield started


def test_sigterm_lets_the_running_request_end(checkpoint: Checkpoint, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with held_server(checkpoint, tmp_path) as started, Client(started.address()) as client:
        gate.touch()
        events = client.stream("a red apple", steps=3, images=2)
        assert isinstance(next(events), Queued) and isinstance(next(events), Started)
        started.popen.send_signal(signal.SIGTERM)
        started.says("draining: requests have 30 s to end")
        gate.unlink()
        kinds = [type(event) for event in events]
        assert kinds.count(Image) == 2 and kinds[-1] is Done
        assert started.end() == 0
    assert started.err[-1].endswith("stopped") and "Traceback" not in "\n".join(started.err)
    assert len(started.out) == 1, "the addresses, for who starts it from a script"


def test_after_the_grace_the_request_is_cancelled(checkpoint: Checkpoint, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with held_server(checkpoint, tmp_path, "--grace", "1") as started, Client(started.address()) as client:
        gate.touch()
        events = client.stream("a red apple", steps=3)
        assert isinstance(next(events), Queued) and isinstance(next(events), Started)
        started.popen.send_signal(signal.SIGINT)
        with pytest.raises(ServerError) as cancelled:
            list(events)
        assert cancelled.value.code == grpc.StatusCode.UNAVAILABLE
        assert "its grace of 1 s was over before the request was done" in str(cancelled.value)
        gate.unlink()
        assert started.end() == 0
    assert "Traceback" not in "\n".join(started.err)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_means_now(number: int, status: int, checkpoint: Checkpoint, tmp_path: Path) -> None:
    with held_server(checkpoint, tmp_path) as started, Client(started.address()) as client:
        (tmp_path / "gate").touch()
        events = client.stream("a red apple", steps=3)
        assert isinstance(next(events), Queued) and isinstance(next(events), Started)
        started.popen.send_signal(signal.SIGTERM)
        started.says("draining")
        started.popen.send_signal(number)
        assert started.end() == status
        with pytest.raises(ServerError):
            list(events)
    assert started.err[-1] == {143: "terminated", 130: "interrupted"}[status]


@pytest.mark.parametrize(
    "numbers",
    [(signal.SIGINT, signal.SIGTERM), (signal.SIGHUP, signal.SIGTERM), (signal.SIGTERM, signal.SIGHUP, signal.SIGHUP)],
    ids=["Ctrl-C in a parent too", "a terminal closes", "systemd's SendSIGHUP"],
)
def test_one_stop_that_is_told_twice_lets_the_running_request_end(
    numbers: tuple[signal.Signals, ...], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    with held_server(checkpoint, tmp_path) as started, Client(started.address()) as client:
        (tmp_path / "gate").touch()
        events = client.stream("a red apple", steps=3)
        assert isinstance(next(events), Queued) and isinstance(next(events), Started)
        for number in numbers:
            started.popen.send_signal(number)
            started.says("draining: requests have 30 s to end")
        (tmp_path / "gate").unlink()
        assert [type(event) for event in events][-1] is Done
        assert started.end() == 0
    assert started.err[-1].endswith("stopped")


def test_who_is_told_to_ignore_a_terminal_s_end_serves_on(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """As nohup does it."""
    ignored = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + HELD
    with process("-c", ignored, tmp_path / "g", tmp_path / "f", "--model", checkpoint.path, *FREE) as started:
        with Client(started.address()) as client:
            started.popen.send_signal(signal.SIGHUP)
            assert len(client.generate("a red apple", steps=2)) == 1
        started.popen.send_signal(signal.SIGTERM)
        assert started.end() == 0


def test_a_failed_device_ends_the_process(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Whoever sits and whoever waits is told, not one caller only."""
    with held_server(checkpoint, tmp_path) as started, Client(started.address()) as client:
        (tmp_path / "gate").touch()
        callers = [client.stream("a red apple", images=8) for _ in range(3)]
        assert all(isinstance(next(caller), Queued) for caller in callers)
        (tmp_path / "fault").touch()
        (tmp_path / "gate").unlink()
        for caller in callers:
            with pytest.raises(ServerError, match="the device failed: lost") as failed:
                list(caller)
            assert failed.value.code is grpc.StatusCode.UNAVAILABLE
        assert started.end() == 1


# A lane that OpenVINO compiles over and over while a file of this name is there.
COMPILING = """
import sys
from pathlib import Path
from graphs import ports
from server import app
from server.__main__ import main

gate, load = Path(sys.argv[1]), app.load_model

def load_slow(settings):
    model = load(settings)
    make = model.backend.denoiser
    def denoiser(width, height, rows, chunks=1, rank=0):
        if chunks > 1:
            print("making", flush=True)
            sides = ports.sides(model.spec, width, height, 1, chunks)
            while gate.exists():
                model.backend._compile("unet", ports.shapes("unet", model.spec, sides))
        return make(width, height, rows, chunks)
    model.backend.denoiser = denoiser
    return model

app.load_model = load_slow
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize("drained", [True, False])
def test_sigterm_while_a_lane_is_made(drained: bool, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Who waits for it has the grace too. Then the process ends well whatever the compiler does: an interpreter that
    ends while OpenVINO compiles in a thread of it aborts every other time."""
    gate = tmp_path / "gate"
    gate.touch()
    arguments = ("-c", COMPILING, gate, "--model", checkpoint.path, *FREE, "--grace", "30" if drained else "0.05")
    with process(*arguments) as started, Client(started.address()) as client:
        events = client.stream("red apple " * 12, steps=1, long_prompt=True)
        assert isinstance(next(events), Queued)
        started.says("^making$")
        started.popen.send_signal(signal.SIGTERM)
        started.says("draining")
        if drained:
            gate.unlink()
            kinds = [type(event) for event in events]
            assert kinds.count(Image) == 1 and kinds[-1] is Done
        else:
            with pytest.raises(ServerError) as cancelled:
                list(events)
            assert cancelled.value.code in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)
        assert started.end() == 0, started.err
    assert started.err[-1].endswith("stopped") and "Traceback" not in "\n".join(started.err)


def test_a_stuck_device_ends_the_process(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with held_server(checkpoint, tmp_path, "--watchdog", "1") as started, Client(started.address()) as client:
        (tmp_path / "gate").touch()
        with pytest.raises(ServerError, match="the device is stuck: nothing for") as failed:
            client.generate("a red apple")
        assert failed.value.code is grpc.StatusCode.UNAVAILABLE
        assert started.end() == 1
    assert "Traceback" not in "\n".join(started.err)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_while_it_loads(number: int, status: int, checkpoint: Checkpoint) -> None:
    with process("-c", SLOW_LOAD, "--model", checkpoint.path, *FREE) as started:
        started.says("^loading$")
        started.popen.send_signal(number)
        assert started.end() == status
    assert started.err == [{130: "interrupted", 143: "terminated", 129: "hung up"}[status]]


SLOW_IMPORT = """
import runpy, sys, threading

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "grpc":
            print("importing", flush=True)
            threading.Event().wait()

sys.meta_path.insert(0, Finder())
sys.argv = ["server"]
runpy.run_module("server", run_name="__main__")
"""


def test_ctrl_c_while_it_imports() -> None:
    with process("-c", SLOW_IMPORT) as started:
        started.says("^importing$")
        started.popen.send_signal(signal.SIGINT)
        assert started.end() == 130
    assert started.err == ["interrupted"]


def ends_with(*arguments: str | Path, environment: dict[str, str] | None = None) -> tuple[int, list[str]]:
    """Exit status and the lines on stderr of a server that does not come up."""
    with process(*arguments, environment=environment) as started:
        return started.end(), started.err


@pytest.mark.parametrize("door", ["grpc", "metrics"])
def test_a_port_in_use_is_one_sentence(door: str, server: Server, checkpoint: Checkpoint) -> None:
    port = {"grpc": server.grpc_port, "metrics": server.metrics_port}[door]
    status, told = ends_with("-m", "server", "--model", checkpoint.path, *FREE, f"--{door}-port", str(port))
    assert status == 1
    assert told == [
        f"latentd: {door} port 127.0.0.1:{port} cannot be opened: Address already in use; is another latentd running? "
        f"Choose another with --{door}-port"
    ]


def test_a_bad_setting_is_one_sentence() -> None:
    status, told = ends_with("-m", "server", environment={"LATENTD_SEATS": "none"})
    assert (status, told) == (1, ["latentd: LATENTD_SEATS is 'none'; it takes an integer from 1 to 1024"])


def test_a_misspelt_variable_is_a_warning(tmp_path: Path) -> None:
    environment = {"LATENTD_SEAT": "3", "LATENTD_STEPS": "3", "LATENTD_PORT": "tcp://10.0.0.11:8001"}
    status, told = ends_with("-m", "server", tmp_path / "nothing", *FREE, environment=environment)
    assert status == 1 and len(told) == 2
    sentence = "LATENTD_SEAT is no variable of latentd and is ignored; did you mean LATENTD_SEATS?"
    assert told[0].endswith(f" WARNING latentd.server {sentence}")


def test_a_model_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    status, told = ends_with("-m", "server", "--model", tmp_path / "nothing", *FREE)
    assert status == 1 and len(told) == 1 and told[0].startswith(f"latentd: model {tmp_path / 'nothing'} is not there")


WITHOUT = """
import sys
sys.modules[sys.argv.pop(1)] = None
from server.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("missing", "told"),
    [
        ("grpc", "the server needs grpc, which is not installed: "),
        ("yaml", "the server needs yaml, which is not installed: "),
        ("openvino", "latentd: backend openvino needs openvino, which is not installed: "),
    ],
)
def test_a_missing_extra_is_named(missing: str, told: str, checkpoint: Checkpoint) -> None:
    assert ends_with("-c", WITHOUT, missing, "--model", checkpoint.path, *FREE) == (1, [told + install("cpu")])


NO_TORCH = """
import asyncio, sys
from pathlib import Path
from latentd import AsyncClient
from server.app import Server, load_model
from server.settings import read_settings

async def main():
    server = Server(read_settings(sys.argv[1:], {}))
    await server.open()
    await server.load(load_model)
    async with AsyncClient(f"127.0.0.1:{server.grpc_port}") as client:
        (picture,) = await client.generate("a red apple", preview_every=1)
    await server.close(1)
    heavy = {"torch", "transformers", "diffusers", "onnx", "model", "export", "kernels"}
    print(picture.width, sorted(heavy & set(sys.modules)))

asyncio.run(main())
"""


def test_a_cpu_server_imports_no_torch(checkpoint: Checkpoint) -> None:
    with process("-c", NO_TORCH, "--model", checkpoint.path, *FREE) as started:
        assert started.end() == 0, started.err
    assert started.out == ["24 []"]


LOST = """
import sys
from server import app
from server.__main__ import main

class AtExit:
    def __del__(self):
        print("freed", flush=True)

held = AtExit()  # as torch's tensors are, which may abort then

def load(settings):
    if sys.argv[1] == "DeviceError":
        from engines.errors import DeviceError
        raise DeviceError("cuda failed: an illegal memory access was encountered")
    from engines.errors import OutOfMemory
    raise OutOfMemory("8 seats of 512x512: the GPU's memory is full: lower --seats")

app.load_model = load
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize(
    ("error", "told"),
    [
        ("OutOfMemory", "latentd: 8 seats of 512x512: the GPU's memory is full: lower --seats"),
        ("DeviceError", "latentd: cuda failed: an illegal memory access was encountered"),
    ],
)
def test_a_device_that_fails_while_it_loads_is_one_sentence(error: str, told: str, checkpoint: Checkpoint) -> None:
    with process("-c", LOST, error, "--model", checkpoint.path, *FREE) as started:
        assert (started.end(), started.err) == (1, [told])
    assert started.out == (["freed"] if error == "OutOfMemory" else []), "a failed device's memory is left alone"


def test_a_gpu_that_is_not_here_is_told_before_the_model_is_read(tmp_path: Path) -> None:
    status, told = ends_with("-m", "server", "--model", tmp_path / "nothing", "--device", "cuda", *FREE)
    assert status == 1 and len(told) == 1 and told[0].startswith("latentd: device cuda: "), told
