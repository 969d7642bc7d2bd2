"""The command line: main(argv) in this process, and the real program where signals, pipes and terminals matter."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from latentd.__main__ import main
from latentd.options import parse
from latentd.v1 import images_pb2 as pb
from tests.support.fake import FakeServer

PATIENCE = 30
# SIGINT may be ignored where the tests were started (a shell's background job), and a child inherits that.
PROGRAM = [
    sys.executable,
    "-c",
    "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
    "runpy.run_module('latentd', run_name='__main__', alter_sys=True)",
]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))


def files() -> list[str]:
    return sorted(path.name for path in Path().iterdir())


def test_one_prompt_one_file(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["a red apple", "-o", "apple.png", "--server", server.address, "--seed", "7"]) == 0
    assert files() == ["apple.png"] and Image.open("apple.png").format == "PNG"
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    assert line.startswith("apple.png: seed 7, 32x16, 4 steps of dpmpp_2m, guidance 7.5, queue 3 ms, encode 41 ms, ")


def test_the_times_of_several_pictures_are_told_once(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["a red apple", "-o", "apple.png", "--images", "3", "--server", server.address]) == 0
    *pictures, times = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in pictures] == ["apple-1.png", "apple-2.png", "apple-3.png"]
    assert not [line for line in pictures if " ms" in line]
    assert times == (
        "a red apple: 3 pictures, queue 3 ms, encode 41 ms, denoise 1830 ms (1.5 seats shared), decode wait 7 ms, "
        "decode 60 ms, file 5 ms, delivery 2 ms"
    )


def test_flags_become_the_request(server: FakeServer) -> None:
    flags = "--negative pear --seed 7 --steps 3 --guidance 4 --sampler ddim --size 16x24 --images 2"
    assert (
        main(
            [
                "an apple",
                "-o",
                "a.jpg",
                "--server",
                server.address,
                "--priority",
                "-2",
                "--model",
                "models/demo/",
                *flags.split(),
            ]
        )
        == 0
    )
    assert server.images.requests == [
        pb.GenerateRequest(
            prompt="an apple",
            negative_prompt="pear",
            seed=7,
            steps=3,
            guidance=4,
            sampler="ddim",
            width=16,
            height=24,
            images=2,
            model="demo",
            priority=-2,
            format=pb.IMAGE_FORMAT_JPEG,
        )
    ]
    assert files() == ["a-1.jpg", "a-2.jpg"] and Image.open("a-1.jpg").format == "JPEG"


@pytest.mark.parametrize(("word", "number"), [("batch", 0), ("interactive", 1), ("7", 7), ("-2", -2)])
def test_a_priority_has_a_name_or_a_number(word: str, number: int, server: FakeServer) -> None:
    assert main(["an apple", "-o", "a.png", "--server", server.address, "--priority", word]) == 0
    assert server.images.requests[0].priority == number


def test_a_priority_that_is_neither(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["an apple", "--priority", "urgent"]) == 2
    assert "'urgent' is not batch, interactive or a whole number" in capsys.readouterr().err


def test_prompts_are_sent_together(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["meet one", "--server", server.address, "meet two", "--steps", "2"]) == 0
    assert files() == ["meet-one.png", "meet-two.png"]
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_folder_and_repeated_prompts(server: FakeServer) -> None:
    assert main(["pear", "pear", "-o", "fruit/", "--format", "webp", "--server", server.address]) == 0
    assert sorted(path.name for path in Path("fruit").iterdir()) == ["pear-1.webp", "pear-2.webp"]


def test_a_new_folder_without_a_picture_goes_again() -> None:
    nobody = ["--server", "127.0.0.1:1"]
    assert main(["pear", "-o", "fruit/", *nobody]) == 1
    assert not Path("fruit").exists()
    Path("fruit").mkdir()
    assert main(["pear", "-o", "fruit/", *nobody]) == 1
    assert Path("fruit").is_dir(), "it was there before"


def test_stdout_takes_one_picture(server: FakeServer, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["an apple", "-o", "-", "--format", "webp", "--server", server.address]) == 0
    out, err = capfdbinary.readouterr()
    assert Image.open(BytesIO(out)).format == "WEBP"
    assert err.decode().startswith("stdout: seed 0, 32x16") and files() == []


def test_a_kept_picture_of_several_has_the_name_alone(server: FakeServer) -> None:
    assert main(["an apple", "-o", "a.png", "--images", "4", "--keep", "1", "--server", server.address]) == 0
    assert files() == ["a.png"]


def test_the_format_is_the_suffixs_and_else_what_is_said_or_liked(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATENTD_FORMAT", "webp")
    for flags in (["-o", "a.jpg"], ["-o", "b"], ["-o", "c", "--format", "png"], ["-o", "d.png", "--format", "png"]):
        assert main(["an apple", *flags, "--server", server.address]) == 0
    assert {name: Image.open(name).format for name in files()} == {
        "a.jpg": "JPEG",
        "b.webp": "WEBP",
        "c.png": "PNG",
        "d.png": "PNG",
    }


def test_nothing_is_replaced_in_silence(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert main(["an apple", "-o", "a.png", "--film", "a.webp", "--server", server.address]) == 0
    once, again = capsys.readouterr().out.splitlines()[::2]
    assert once.startswith("a.png: seed 0") and again.startswith("a.png (replaced): seed 0")
    assert main(["an apple", "-o", "a.png", "--images", "2", "--server", server.address]) == 0
    assert main(["an apple", "--server", server.address]) == 0
    assert main(["an apple", "--images", "2", "--server", server.address]) == 0
    assert files() == ["a-2.png", "a-3.png", "a.png", "a.webp", "an-apple-2.png", "an-apple-3.png", "an-apple.png"]
    assert "(replaced)" not in capsys.readouterr().out


def test_a_log_gets_lines_and_no_bars(server: FakeServer) -> None:
    arguments = ["an apple", "long story", "--server", server.address]
    done = subprocess.run(
        [*PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=PATIENCE
    )
    assert sorted(line.partition(" ")[0] for line in done.stdout.splitlines()) == [
        "an-apple.png:",
        "long-story.png:",
        "the",
    ]


def test_film(server: FakeServer) -> None:
    arguments = ["apple", "pear", "-o", "f.png", "--film", "f.webp", "--steps", "5", "--server", server.address]
    assert main(arguments) == 0
    assert files() == ["f-1.png", "f-1.webp", "f-2.png", "f-2.webp"]
    for name in ("f-1.webp", "f-2.webp"):
        film = Image.open(name)
        assert film.n_frames == 6 and film.size == (32, 16)  # pyright: ignore[reportAttributeAccessIssue]
    assert all(request.preview_every == 1 for request in server.images.requests)


def test_list_models(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list-models", "--server", server.address]) == 0
    out = capsys.readouterr().out
    assert "demo  (openvino, f32, 4 seats)" in out and "64x64, 20 steps, guidance 4, ddim" in out
    assert "4096 characters, clip skip 2\n" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a", "--size", "512"], "'512' is not WIDTHxHEIGHT, such as 512x512"),
        (["a", "--steps", "many"], "argument --steps: 'many' is not a whole number"),
        (["a", "--steps", "-3"], "steps is -3; it must be 1 or more, up to the model's limit"),
        (["a", "--guidance", "high"], "argument --guidance: 'high' is not a number"),
        (["a", "--init", "https://example.org/a.png"], "--init is 'https://example.org/a.png', a URL; it takes a file"),
        (["a", "--mask", "data:,a"], "--mask is 'data:,a', a URL"),
        (["a", "-o", "a.jpg", "--format", "png"], "-o a.jpg is a jpeg file by its suffix, and --format says png"),
        (["a", "-o", "-", "--images", "2"], "-o - writes one picture to stdout, and these are 2"),
        (["a", "b", "-o", "-"], "-o - writes one picture to stdout, and these are 2"),
        (["a", "--images", "0"], "'0' is not a number in 1..1000"),
        (["a", "--timeout", "0"], "'0' is not a number of seconds above 0"),
        (["a", "--seed", "-1"], "seed is -1; it must be 0 to 4294967295"),
        (["a", "--film", "out.gif"], "'out.gif' does not end in .webp"),
        (["a", "--format", "gif"], "invalid choice: 'gif'"),
        (["a", "-o", "a.gif"], "a.gif: the suffix must be one of .png"),
        (["a", "-o", "a.webp", "--film", "a.webp"], "a.webp would be written twice"),
        (["a", "--server", "http://localhost:8001"], "is a URL; write host:port"),
        (["a", "--step", "3"], "there is no option --step; did you mean --steps?"),
        (["a", "--prompt-weight=1"], "there is no option --prompt-weight; did you mean --prompt-weights?"),
        (["a", "-x"], "there is no option -x (see --help)"),
        ([], "no prompt given"),
    ],
)
def test_bad_usage_is_one_sentence(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1 and err.endswith("(see --help)\n")
    assert files() == []


def test_unwritable_is_found_before_anything_is_sent(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").touch()
    for output, film, named in (
        ("missing/a.png", "f.webp", "missing/a.png: No such file"),
        ("file/a.png", "f.webp", "file/a.png: Not a directory"),
        ("file/", "f.webp", "file"),
        ("a.png", "missing/f.webp", "missing/f.webp"),
    ):
        assert main(["an apple", "-o", output, "--film", film, "--server", server.address]) == 1
        err = capsys.readouterr().err
        assert err.startswith(f"latentd: cannot write {named}") and err.count("\n") == 1
    assert server.images.requests == [] and files() == ["file"]


def test_environment_gives_way_to_flags(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "SERVER": server.address,
        "STEPS": "9",
        "SEED": "5",
        "NEGATIVE": "",
        "SIZE": "16x16",
        "OUTPUT": "env.png",
        "MODEL": "/models/demo",
    }.items():
        monkeypatch.setenv(f"LATENTD_{name}", value)
    assert main(["an apple", "--steps", "2"]) == 0
    (request,) = server.images.requests
    assert (request.steps, request.seed, request.width, request.model) == (2, 5, 16, "demo")
    assert files() == ["env.png"]


def test_environment_is_checked_like_flags(capsys: pytest.CaptureFixture[str]) -> None:
    for name, value, wanted in (
        ("SIZE", "512", "WIDTHxHEIGHT, such as 512x512"),
        ("STEPS", "abc", "a whole number"),
        ("GUIDANCE", "abc", "a number"),
        ("FORMAT", "gif", "one of png, jpeg, webp"),
        ("PREVIEW", "maybe", "one of 1, true, yes, on, 0, false, no, off"),
    ):
        with pytest.raises(SystemExit) as stop:
            parse(["a"], {f"LATENTD_{name}": value})
        assert stop.value.code == 2
        assert f"environment variable LATENTD_{name}: {value!r} is not {wanted} (see" in capsys.readouterr().err
    assert parse(["a"], {"LATENTD_PREVIEW": "1"}).preview is True
    assert parse(["a", "--no-preview"], {"LATENTD_PREVIEW": "1"}).preview is False


def test_no_server_is_said_once(nobody: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["apple", "pear", "--server", nobody]) == 1
    err = capsys.readouterr().err
    assert (
        err.count(f"latentd: no latentd server answers at {nobody}; start one with `make serve` (UNAVAILABLE)\n") == 1
    )
    assert main(["--list-models", "--server", nobody]) == 1
    assert files() == []


def test_one_refused_prompt_does_not_stop_the_others(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["refuse this", "full house", "an apple", "--server", server.address]) == 1
    err = capsys.readouterr().err
    assert "latentd: steps 999 is outside 1..150 (INVALID_ARGUMENT)\n" in err, "a server that named no id"
    assert "latentd: the queue is full; try again in 3 s (RESOURCE_EXHAUSTED)\n" in err
    assert files() == ["an-apple.png"]


def test_pictures_before_an_error_are_written(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nan", "--images", "2", "-o", "a.png", "--server", server.address]) == 1
    assert files() == ["a-1.png"]
    assert "latentd: picture 1 is not a number (INTERNAL, request r1)\n" in capsys.readouterr().err


def test_timeout(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["hold", "--timeout", "2", "--server", server.address]) == 1
    err = capsys.readouterr().err
    assert "the timeout passed before the request was done (DEADLINE_EXCEEDED, request r1)\n" in err, "as Queued said"


def test_a_cut_prompt_is_said(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["long story", "--server", server.address]) == 0
    said = "the prompt has more tokens than the model reads; its end is ignored"
    assert f"{said}; --long-prompt has it read on\n" in capsys.readouterr().err
    assert main(["long story", "--long-prompt", "--server", server.address]) == 0
    assert f"{said}\n" in capsys.readouterr().err


def test_prompts_of_one_word_may_be_one_prompt(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["red", "apple", "--negative", "blue", "--guidance", "1", "--server", server.address]) == 0
    assert files() == ["apple.png", "red.png"], "what was said is done"
    assert capsys.readouterr().err.splitlines() == [
        'latentd: 2 prompts of one word each, a request each; one prompt of several words is quoted: "red apple"',
        "latentd: --negative counts where --guidance is above 1; it is 1",
    ]
    assert main(["一只猫", "一只狗", "--server", server.address]) == 0
    assert main(["red apple", "pear", "--negative", "blue", "--server", server.address]) == 0
    assert main(["pear", "--negative", "blue", "--guidance", "1.5", "--server", server.address]) == 0
    assert capsys.readouterr().err == ""


def test_preview_without_a_terminal_goes_on(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["an apple", "--preview", "--server", server.address]) == 0
    assert "--preview needs a terminal" in capsys.readouterr().err
    assert files() == ["an-apple.png"] and server.images.requests[0].preview_every == 0


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert text.count('python -m latentd "') == 3 and "LATENTD_STEPS" in text
    assert "python -m latentd serve [MODEL]` runs a server" in text
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == "latentd 0.1.0\n"


def test_ctrl_c_cancels_and_leaves_quietly(server: FakeServer) -> None:
    arguments = ["hold", "hold too", "--server", server.address]
    with subprocess.Popen([*PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        assert server.images.held.wait(PATIENCE)
        program.send_signal(signal.SIGINT)
        _, err = program.communicate(timeout=PATIENCE)
    assert program.returncode == 130
    assert err.splitlines()[-1] == "interrupted" and "Traceback" not in err
    assert server.images.cancelled.wait(PATIENCE)
    assert files() == []


def test_ctrl_c_during_the_imports_is_quiet() -> None:
    # A module that the imports reach raises what Ctrl-C raises there.
    Path("tqdm.py").write_text("raise KeyboardInterrupt\n")
    environment = {**os.environ, "PYTHONPATH": f"{Path.cwd()}{os.pathsep}{os.environ['PYTHONPATH']}"}
    done = subprocess.run([*PROGRAM, "an apple"], capture_output=True, text=True, env=environment, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_a_missing_package_is_one_sentence() -> None:
    without = "import runpy, sys; sys.modules['grpc'] = None; runpy.run_module('latentd', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", without, "an apple"], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 1
    assert done.stderr.startswith(f"latentd needs grpc, which {sys.executable} does not have: ")
    assert done.stderr.count("\n") == 1


def test_a_reader_that_leaves_is_no_error(server: FakeServer) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    arguments = ["--list-models", "--server", server.address]
    done = subprocess.run([*PROGRAM, *arguments], stdout=writer, stderr=subprocess.PIPE, text=True, timeout=PATIENCE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def in_a_terminal(*arguments: str) -> tuple[int, str]:
    """Exit code of the program and all that its terminal (one that reports no size of its own) was sent."""
    shown, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "PYTHONUTF8": "1"}
    with subprocess.Popen([*PROGRAM, *arguments], stdout=terminal, stderr=terminal, env=environment) as program:
        os.close(terminal)
        screen = b""
        while True:
            try:
                screen += os.read(shown, 65536)
            except OSError:  # Linux says EIO when the last writer has closed
                break
    os.close(shown)
    return program.returncode, screen.decode()


def test_each_prompt_has_a_bar_in_a_terminal(server: FakeServer) -> None:
    code, screen = in_a_terminal("an apple", "a pear", "refuse this", "--server", server.address)
    assert code == 1
    assert "an apple: 100%" in screen and "a pear: 100%" in screen and "refuse this:" not in screen
    assert "a-pear.png: seed 0" in screen


def test_preview_draws_in_a_terminal(server: FakeServer) -> None:
    code, screen = in_a_terminal("an apple", "--preview", "--steps", "2", "--server", server.address)
    assert code == 0
    assert "\x1b[38;2;10;200;30;48;2;10;200;30m▀" in screen  # the finished picture
    assert "an apple  2/2  done" in screen and "an-apple.png: seed 0" in screen
    assert server.images.requests[0].preview_every == 1
