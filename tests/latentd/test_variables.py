"""The LATENTD_ variables: their list is that of the programs, and what is none of them is told."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from latentd.__main__ import main as command
from latentd.options import parse
from latentd.variables import NAMES, is_service_link, strangers
from server.settings import Settings
from tests.support.fake import FakeServer

ROOT = Path(__file__).parent.parent.parent


def test_the_list_is_what_the_programs_read(monkeypatch: pytest.MonkeyPatch) -> None:
    from engines import __main__ as engines

    read: set[str] = set()

    class Recording(dict):
        def get(self, name, default=None):
            read.add(name)
            return default

        def __contains__(self, name):
            read.add(name)
            return False

    parse(["a prompt"], Recording())
    with monkeypatch.context() as patch:
        patch.setattr(os, "environ", Recording())
        engines._parser()
    read |= {f"LATENTD_{name.upper()}" for name in Settings.__dataclass_fields__}
    for folder in ("server", "engines", "export", "kernels", "pipeline", "latentd"):  # what is read by its whole name
        for path in (ROOT / folder).rglob("*.py"):
            if path.name != "variables.py":
                read |= set(re.findall(r'"(LATENTD_[A-Z_]*[A-Z])"', path.read_text()))
    assert {name for name in read if name.startswith("LATENTD_")} == {f"LATENTD_{name}" for name in NAMES}


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("LATENTD_SEAT", "LATENTD_SEATS"),
        ("LATENTD_GRPCPORT", "LATENTD_GRPC_PORT"),
        ("LATENTD_BACKND", "LATENTD_BACKEND"),
        ("LATENTD_CACHE_DIR", "LATENTD_CACHE"),
        ("LATENTD_NEGATIV", "LATENTD_NEGATIVE"),
        ("LATENTD_seats", "LATENTD_SEATS"),
        ("LATENTD_HF_HOME", ""),
        ("LATENTD_", ""),
    ],
)
def test_a_stranger_is_told_with_the_name_that_comes_nearest(name: str, meant: str) -> None:
    (told,) = strangers({name: "1", "PATH": "/bin", "LATENTD_SEATS": "2", "LATENTD_STEPS": "3", "LATENT_X": "4"})
    nearest = f"; did you mean {meant}?" if meant else ""
    assert told == f"{name} is no variable of latentd and is ignored{nearest}"


def test_each_stranger_is_told() -> None:
    assert len(strangers({"LATENTD_B": "", "LATENTD_A": ""})) == 2 and strangers({}) == []


# What Kubernetes gives a container beside a Service named latentd, and beside one named latentd-grpc.
LINKS = {
    f"LATENTD_{infix}{name}": value
    for infix in ("", "GRPC_")
    for name, value in {
        "SERVICE_HOST": "10.0.0.11",
        "SERVICE_PORT": "8001",
        "SERVICE_PORT_GRPC": "8001",
        "PORT": "tcp://10.0.0.11:8001",
        "PORT_8001_TCP": "tcp://10.0.0.11:8001",
        "PORT_8001_TCP_PROTO": "tcp",
        "PORT_8001_TCP_PORT": "8001",
        "PORT_8001_TCP_ADDR": "10.0.0.11",
    }.items()
}


def test_what_kubernetes_sets_is_nobodys_mistake() -> None:
    assert strangers(LINKS) == []
    assert not is_service_link("GRPC_PORT", "8001") and is_service_link("GRPC_PORT", "tcp://10.0.0.11:8001")


def test_building_engines_tells_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from engines.__main__ import main

    monkeypatch.setenv("LATENTD_CACHE", str(tmp_path))
    monkeypatch.setenv("LATENTD_ROW", "2")
    assert main(["clean"]) == 0
    assert (
        capsys.readouterr().err == "LATENTD_ROW is no variable of latentd and is ignored; did you mean LATENTD_ROWS?\n"
    )


def test_the_command_line_tells_it_and_goes_on(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LATENTD_STEP", "3")
    monkeypatch.setenv("LATENTD_SEATS", "3")  # the server's
    assert command(["an apple", "--server", server.address]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("latentd: ")]
    assert lines == ["latentd: LATENTD_STEP is no variable of latentd and is ignored; did you mean LATENTD_STEPS?"]
