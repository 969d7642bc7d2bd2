"""The parts that need no server: pictures, names, films, drawings, error details, imports."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

import latentd
from latentd.channel import channel_options
from latentd.errors import retry_delay
from latentd.events import Done, Gathering, Preview, Queued, Started, Step
from latentd.events import Image as Sent
from latentd.film import LAST_MS, Film
from latentd.names import Target, file_format, places, slug, try_writing
from latentd.picture import Picture
from latentd.progress import Tally, title
from latentd.terminal import half_blocks
from latentd.v1 import images_pb2 as pb
from tests.support.fake import TIMINGS, file_of, retry_status


def picture(format: str = "png") -> Picture:
    return Picture(file_of(32, 16, (10, 200, 30), format.upper()), format, seed=7, index=0, width=32, height=16)


def test_import_is_light() -> None:
    code = "import sys, latentd; print([m for m in ('grpc', 'PIL', 'google.protobuf', 'tqdm') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_client_needs_only_what_the_wheel_declares() -> None:
    code = (
        "import sys, latentd.command; print(sorted(m for m in ('numpy', 'google.rpc', 'grpc_status', 'server') "
        "if m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_every_exported_name_is_there() -> None:
    assert all(getattr(latentd, name) for name in latentd.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Scheduler'"):
        latentd.Scheduler  # noqa: B018


def test_save_follows_the_suffix(tmp_path: Path) -> None:
    for name, format in (("a.png", "PNG"), ("a.JPG", "JPEG"), ("a.webp", "WEBP")):
        assert Image.open(picture().save(tmp_path / name)).format == format
    assert (tmp_path / "a.png").read_bytes() == picture().data
    with pytest.raises(ValueError, match=r"a\.gif: the suffix must be one of \.png"):
        picture().save(tmp_path / "a.gif")


def test_repr_of_a_picture_has_no_bytes() -> None:
    assert "data" not in repr(picture()) and "seed=7" in repr(picture())


def test_gathering_waits_for_nothing_and_sorts() -> None:
    gathering = Gathering()
    for index in (1, 0):
        gathering.add(Sent(index=index, format=pb.IMAGE_FORMAT_UNSPECIFIED))
    assert [(p.index, p.format, p.timings) for p in gathering.pictures()] == [(0, "png", None), (1, "png", None)]
    gathering.add(Done(timings=TIMINGS))
    assert all(p.timings is not None and p.timings.encode_ms == 41 for p in gathering.pictures())


@pytest.mark.parametrize(
    ("status", "seconds"),
    [
        (retry_status(2, 500_000_000), 2.5),
        (retry_status(0, 0), 0),
        (b"", None),
        (b"\x08\x08", None),
        (b"\xff\xff", None),
        (b"\x1a\x02\xff\xff", None),
    ],
)
def test_retry_delay(status: bytes, seconds: float | None) -> None:
    assert retry_delay(status) == seconds


def test_a_proxy_never_stands_before_this_machine() -> None:
    for address in ("127.0.0.1:8001", "localhost:8001", "[::1]:8001"):
        assert ("grpc.enable_http_proxy", 0) in channel_options(address)
    assert ("grpc.enable_http_proxy", 0) not in channel_options("gpu.example.org:8001")
    assert ("grpc.max_receive_message_length", 64 * 2**20) in channel_options("gpu.example.org:8001")


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A red apple!", "a-red-apple"),
        ("../../etc/passwd", "etc-passwd"),
        ("?!", "picture"),
        ("", "picture"),
        ("ein grüner Baum", "ein-grüner-baum"),
        ("x" * 300, "x" * 48),
    ],
)
def test_slug(prompt: str, name: str) -> None:
    assert slug(prompt) == name


def named(prompts: list[str], images: int, output: str, format: str = "png", film: str = "") -> list[tuple[str, str]]:
    rows = places(prompts, images, output, format, Path(film) if film else None)
    return [
        (str(place.picture.path) if place.picture else "stdout", str(place.film.path) if place.film else "")
        for row in rows
        for place in row
    ]


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert named(["a"], 1, "apple.png") == [("apple.png", "")]
    assert named(["a"], 1, "apple", "webp") == [("apple.webp", "")]
    assert named(["a", "b"], 1, "x/apple.jpg", film="f.webp") == [
        ("x/apple-1.jpg", "f-1.webp"),
        ("x/apple-2.jpg", "f-2.webp"),
    ]
    assert [p for p, _ in named(["a", "b"], 2, "apple.png")] == [f"apple-{n}.png" for n in (1, 2, 3, 4)]
    assert named(["a pear", "b"], 1, "", "jpeg") == [("a-pear.jpg", ""), ("b.jpg", "")]
    assert [p for p, _ in named(["same", "Same!"], 2, "out/")] == [
        "out/same-1.png",
        "out/same-2.png",
        "out/same-3.png",
        "out/same-4.png",
    ]
    assert named(["a"], 1, "-") == [("stdout", "")]


def test_numbers_go_on_after_the_highest_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pear.png").touch()
    assert named(["pear"], 1, "") == [("pear-2.png", "")]
    assert named(["pear"], 2, "", film="f.webp") == [("pear-2.png", "f-2.webp"), ("pear-3.png", "f-3.webp")]
    assert named(["pear"], 1, "pear.png", film="f.webp") == [("pear.png", "f.webp")]
    Path("pear-7.png").touch()
    Path("f-8.webp").touch()
    Path("pear-x.png").touch()
    assert named(["pear"], 1, "") == [("pear-8.png", "")]
    assert named(["pear"], 2, "pear.png", film="f.webp") == [("pear-9.png", "f-9.webp"), ("pear-10.png", "f-10.webp")]
    assert named(["pear"], 2, "", "webp") == [("pear-1.webp", ""), ("pear-2.webp", "")]


def test_a_name_that_was_taken_meanwhile_is_left_alone(tmp_path: Path) -> None:
    ((place,),) = places(["pear"], 1, f"{tmp_path}/", "png", None)
    assert place.picture is not None
    (tmp_path / "pear.png").write_bytes(b"another run's")
    assert place.picture.claim() == (tmp_path / "pear-2.png", False)
    assert (tmp_path / "pear-2.png").read_bytes() == b"" and (tmp_path / "pear.png").read_bytes() == b"another run's"
    ((place,),) = places(["pear"], 1, str(tmp_path / "pear.png"), "png", None)
    assert place.picture is not None and place.picture.claim() == (tmp_path / "pear.png", True)


def test_two_files_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a\.webp would be written twice"):
        named(["a"], 1, "a.webp", film="./a.webp")
    with pytest.raises(ValueError, match=r"apple\.gif: the suffix must be one of"):
        file_format("apple.gif", None, "png")


def test_try_writing_leaves_everything_as_it_was(tmp_path: Path) -> None:
    kept = tmp_path / "kept.png"
    kept.write_bytes(b"old")
    try_writing(kept)
    try_writing(tmp_path / "new.png")
    assert kept.read_bytes() == b"old" and list(tmp_path.iterdir()) == [kept]
    with pytest.raises(NotADirectoryError):
        try_writing(kept / "new.png")


def test_runs_that_begin_at_the_same_moment_take_no_files_from_each_other(tmp_path: Path) -> None:
    path = tmp_path / "pear.png"
    begin = threading.Barrier(8)

    def run(_: int) -> list[Path]:
        begin.wait()
        names = []
        for _ in range(25):
            try_writing(path)
            names.append(Target(path, path).claim()[0])
        return names

    with ThreadPoolExecutor(8) as pool:
        names = [name for mine in pool.map(run, range(8)) for name in mine]
    assert len({*names}) == 200 and {*names} == {*tmp_path.iterdir()}


def test_film_shows_the_previews_in_order_and_then_the_picture() -> None:
    film = Film()
    for step in (3, 1, 2):  # and of another size than the picture
        film.add(Preview(step=step, jpeg=file_of(16, 8, (80 * step, 0, 0), "JPEG")))
    webp = Image.open(BytesIO(film.webp(picture())))
    assert webp.size == (32, 16) and webp.n_frames == 4  # pyright: ignore[reportAttributeAccessIssue]
    reds, lasting = [], []
    for frame in range(4):
        webp.seek(frame)
        reds.append(webp.convert("RGB").getpixel((5, 5))[0])  # pyright: ignore
        lasting.append(webp.info["duration"])
    assert reds[0] < reds[1] < reds[2] and reds[3] < 40
    assert lasting[-1] == LAST_MS


def test_half_blocks_keep_the_aspect_and_the_colours() -> None:
    image = Image.new("RGB", (8, 8), (255, 0, 0))
    image.paste((0, 0, 255), (0, 4, 8, 8))
    assert half_blocks(image, 8, 4)[0] == "\x1b[38;2;255;0;0;48;2;255;0;0m▀" * 8 + "\x1b[0m"
    assert half_blocks(image, 8, 4)[3] == "\x1b[38;2;0;0;255;48;2;0;0;255m▀" * 8 + "\x1b[0m"
    lines = half_blocks(Image.new("RGB", (64, 32)), 20, 50)
    assert (len(lines), lines[0].count("▀")) == (5, 20)
    lines = half_blocks(Image.new("RGB", (64, 64)), 80, 6)
    assert (len(lines), lines[0].count("▀")) == (6, 12)


def test_tally_counts_steps_even_when_some_were_skipped() -> None:
    tally = Tally()
    tally.add(Queued(steps=10, images=2, ahead=3))
    assert (tally.done, tally.total, tally.state) == (0, 20, "queued, 3 ahead")
    tally.add(Started(index=0))
    tally.add(Step(index=0, step=4, steps=10))
    assert (tally.done, tally.state) == (4, "drawing")
    tally.add(Sent(index=0))
    assert (tally.done, tally.state) == (10, "drawing")
    tally.add(Sent(index=1))
    assert (tally.done, tally.state) == (20, "done")
    fewer = Tally()  # of ten steps a strength of 0.8 makes eight
    for event in (Queued(steps=10, images=1), Step(index=0, step=8, steps=8)):
        fewer.add(event)
    assert fewer.done == fewer.total == 8


def test_title_is_one_short_line() -> None:
    assert title("a red\napple") == "a red apple"
    assert title("x" * 30) == "x" * 23 + "…"
