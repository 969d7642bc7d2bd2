"""A server without a home: containers with an unknown user id, no HOME, folders that cannot be written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from latentd import Client

ROOT = Path(__file__).parent.parent.parent
NOBODY = 12345
FREE = ("--grpc-port", "0", "--metrics-port", "0", "--seats", "1", "--precision", "f32")


def served(environment: dict[str, str], prefix: tuple[str, ...] = ()) -> str:
    """What a server with this environment alone says on stderr, after it has drawn a picture of the demo model."""
    with subprocess.Popen(
        [*prefix, sys.executable, "-m", "server", *FREE],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as started:
        try:
            assert started.stdout is not None
            if line := started.stdout.readline():
                with Client(line.partition("gRPC ")[2].partition(",")[0]) as client:
                    assert len(client.generate("a red apple", steps=1)) == 1
                started.send_signal(signal.SIGTERM)
            err = started.communicate(timeout=60)[1]
        finally:
            started.kill()
    assert line.startswith("latentd serves small-things: "), err
    assert started.returncode == 0 and "Traceback" not in err
    return err


@pytest.fixture
def unknown() -> tuple[str, ...]:
    """What runs a program as a user that passwd does not know, as OpenShift's and docker's --user are."""
    prefix = ("unshare", "--user", f"--map-user={NOBODY}", f"--map-group={NOBODY}")
    code = f"import os, sys; sys.exit(os.getuid() != {NOBODY})"
    try:
        able = subprocess.run([*prefix, sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
    except OSError:
        able = False
    if not able:
        pytest.skip("there are no user namespaces here")
    return prefix


def test_an_unknown_user_without_home_is_served(unknown: tuple[str, ...]) -> None:
    assert "WARNING" not in served({}, prefix=unknown), "a server keeps nothing that it would miss"


def test_a_home_that_must_not_be_entered(unknown: tuple[str, ...], tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0)
    assert "WARNING" not in served({"HOME": str(home)}, prefix=unknown)


@pytest.mark.parametrize(
    "name",
    ["HOME", *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("XDG_CACHE_HOME", "LATENTD_CACHE"))],
)
def test_a_file_where_a_folder_should_be(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "WARNING" not in served({"HOME": str(tmp_path), name: str(tmp_path / "file")})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_nothing_is_written(tmp_path: Path) -> None:
    folders = {name: tmp_path / name.lower() for name in ("HOME", "TMPDIR", "XDG_CONFIG_HOME", "XDG_DATA_HOME")}
    for folder in folders.values():
        folder.mkdir()
    cache = tmp_path / "cache"
    served({name: str(folder) for name, folder in folders.items()} | {"LATENTD_CACHE": str(cache)})
    assert [path for folder in folders.values() for path in folder.rglob("*")] == [] and not cache.exists()
