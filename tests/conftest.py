"""What many tests share: a small exported checkpoint, and a cache that is thrown away."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from engines.artifact.opened import Artifact
from engines.choice import Choice
from engines.graphs import kept_name
from engines.model import Model
from pipeline.checkpoint.opened import Checkpoint, open_checkpoint
from tests.support import durations

WORKER = "PYTEST_XDIST_WORKER" in os.environ
# Triton reads it when it is imported, which any test module may do first: kernels run in its interpreter here. Tests
# that compile are marked `compiled`; tests/test_compiled.py runs them all in a process of their own.
COMPILED = "TESTS_THAT_COMPILE" in os.environ
if not COMPILED:
    os.environ["TRITON_INTERPRET"] = "1"


# Where the tests are a shell's background job SIGINT is ignored, and the servers that they start would inherit that.
# Not mended with subprocess's preexec_fn: it makes a real fork, in which gRPC begins its poller again, finds the
# descriptor closed and aborts before the program is there (grpc/grpc#43055): 7 of 3,000 starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # under nohup
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"  # gRPC reads it once; export/ forks too, and no child of a test uses gRPC


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("latentd")
    group.addoption("--exhaustive", action="store_true", help="whole grids instead of each pair of values once")
    group.addoption(
        "--write-durations", type=Path, metavar="CSV", help="keep how long files and the slowest tests take"
    )


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # a worker of xdist reports to the process that has this
        config.pluginmanager.register(durations.Durations(config.getoption("write_durations")))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    def runs(item: pytest.Item) -> bool:
        whole = config.getoption("exhaustive") or "exhaustive" not in item.keywords
        return whole and ("compiled" in item.keywords) == COMPILED

    running = [item for item in items if runs(item)]
    config.hook.pytest_deselected(items=[item for item in items if not runs(item)])
    items[:] = durations.longest_first(running, durations.read()) if WORKER else running


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engines are cached for the session only; no setting of the user's environment reaches a test.

    The graphs of the test checkpoints (tests/graphs) lie where serving looks for graphs that do not ship.
    """
    for name in [name for name in os.environ if name.startswith("LATENTD_")]:
        del os.environ[name]
    folder = tmp_path_factory.mktemp("cache")
    (folder / "graphs").mkdir()
    for graph in Path(__file__).with_name("graphs").glob("*.onnx"):
        shutil.copy(graph, folder / "graphs" / kept_name(graph.name))
    os.environ["LATENTD_CACHE"] = str(folder)
    # Beside ONNX Runtime's and OpenVINO's threads torch's own only spin: 76 s instead of 10 on two cores.
    torch.set_num_threads(1)
    return folder


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    """Give torch one thread again: a backend that a test loaded may have set its own number, for all of the process."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A checkpoint whose numbers are not Stable Diffusion's: epsilon, 16 tokens, 3 latent channels."""
    from tests.support.checkpoints import make_checkpoint

    return open_checkpoint(make_checkpoint(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="session")
def v_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Another one, with what Stable Diffusion 2 has: velocity, linear projections, as many heads as a block likes."""
    from tests.support.checkpoints import VELOCITY, make_checkpoint

    return open_checkpoint(make_checkpoint(tmp_path_factory.mktemp("models") / "velocity", **VELOCITY))


@pytest.fixture(scope="session")
def sd1_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Stable Diffusion 1.5's topology at a fifth of its width."""
    from tests.support.topologies import make_topology

    return open_checkpoint(make_topology("sd1", tmp_path_factory.mktemp("models") / "sd1"))


@pytest.fixture(scope="session")
def artifact(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """`checkpoint`, exported for TensorRT's builders."""
    return _exported(checkpoint, tmp_path_factory)


@pytest.fixture(scope="session")
def v_artifact(v_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return _exported(v_checkpoint, tmp_path_factory)


@pytest.fixture(scope="session")
def sd1_artifact(sd1_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return _exported(sd1_checkpoint, tmp_path_factory)


def _exported(checkpoint: Checkpoint, folders: pytest.TempPathFactory) -> Artifact:
    """Export a checkpoint once for all workers, whose folders have one parent."""
    from engines.artifact.opened import open_artifact
    from export.artifact import export

    base = folders.getbasetemp()
    place = (base.parent if WORKER else base) / f"exported-{checkpoint.id}" / checkpoint.id
    place.parent.mkdir(exist_ok=True)
    with place.parent.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return open_artifact(place) if place.exists() else export(checkpoint, place, say=lambda line: None)


@pytest.fixture(scope="session")
def model(checkpoint: Checkpoint) -> Model:
    """On OpenVINO in f32, which every CPU has."""
    from engines.model import load

    return load(checkpoint, Choice("openvino", "f32"))


@pytest.fixture(scope="session")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model with a style adapter and a judge, all of which its folder brings."""
    from engines.model import load
    from tests.support.adapters import make_styled
    from tests.support.clips import make_judge

    folder = make_styled(tmp_path_factory.mktemp("models") / "towers")
    make_judge(folder / "judge")
    return load(open_checkpoint(folder), Choice("openvino", "f32", threads=2))


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A checkpoint that torch alone reads."""
    from tests.support.bare import bare_checkpoint

    return bare_checkpoint(tmp_path_factory)


@pytest.fixture(scope="session")
def plain(bare: Checkpoint) -> Artifact:
    from tests.support.bare import plain_artifact

    return plain_artifact(bare)


@pytest.fixture(scope="session")
def oracle(bare: Checkpoint) -> Model:
    """`bare` in float32 torch, on the host."""
    from engines.cpu.torch import TorchBackend
    from pipeline.tokenizer import ClipTokenizer

    return Model(bare, ClipTokenizer(bare.source, bare.spec.text), TorchBackend(bare, threads=1))
