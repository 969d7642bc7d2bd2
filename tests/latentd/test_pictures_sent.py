"""Pictures and the fields beside them, from Python and from the command line to the wire."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from latentd.__main__ import main
from tests.support.clients import both
from tests.support.fake import FakeServer
from tests.support.patience import PATIENCE
from tests.support.uploads import colours, saved


@both
def test_bytes_a_path_and_a_picture(call: Any, server: FakeServer, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(saved(colours(), "jpeg"))
    for upload in (path.read_bytes(), path, str(path)):
        call(server.address, "generate", "an apple", init_image=upload, strength=0.25, timeout=PATIENCE)
    call(server.address, "generate", "an apple", init_image=colours(), mask=colours().convert("1"), fit="pad")
    *files, drawn = server.images.requests
    assert [request.init_image for request in files] == [path.read_bytes()] * 3
    assert all(request.strength == 0.25 and not request.mask for request in files)
    assert drawn.init_image == saved(colours()) and drawn.mask[:4] == b"\x89PNG" and drawn.fit == "pad"
    assert not drawn.HasField("strength")


@both
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"init_image": 3}, "init_image is of type int; it takes bytes, a path or a picture of PIL's"),
        ({"mask": ["a"]}, "mask is of type list; it takes bytes, a path or a picture of PIL's"),
        ({"strength": "half"}, "strength is 'half'; it takes a number"),
        ({"guidance_end": True}, "guidance_end is True; it takes a number"),
        ({"fit": None}, "fit is None; it takes text"),
    ],
)
def test_a_value_of_another_kind_is_named(call: Any, options: dict, words: str, nobody: str) -> None:
    with pytest.raises(TypeError, match=f"^{words}$"):
        call(nobody, "generate", "an apple", **options)


@both
def test_a_file_that_is_not_there(call: Any, nobody: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"init_image: No such file .*nowhere\.png"):
        call(nobody, "generate", "an apple", init_image="nowhere.png")


def test_the_command_line(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("a.png")
    Image.new("L", (8, 8), 255).save("m.png")
    monkeypatch.setenv("LATENTD_STRENGTH", "0.5")
    words = ["--init", "a.png", "--mask", "m.png", "--fit", "resize"]
    words += ["--guidance-start", "0.25", "--guidance-end", ".75"]
    assert main(["an apple", "-o", "b.png", "--server", server.address, *words]) == 0
    (request,) = server.images.requests
    assert (request.init_image, request.mask) == (Path("a.png").read_bytes(), Path("m.png").read_bytes())
    assert (request.strength, request.fit) == (0.5, "resize")
    assert (request.guidance_start, request.guidance_end) == (0.25, 0.75)
    capsys.readouterr()
    assert main(["an apple", "--init", "nowhere.png", "--server", server.address]) == 2
    assert capsys.readouterr().err == "latentd: cannot read nowhere.png: No such file or directory (see --help)\n"
