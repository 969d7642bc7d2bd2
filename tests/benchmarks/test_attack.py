"""What the attack stands on: calls that nobody reads, over a real socket; and each item's own dry words."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from benchmarks import readers
from benchmarks.attack import __main__ as attack
from benchmarks.attack import stalls
from benchmarks.attack.trial import Figure, Trial, request
from benchmarks.attack.unread import Unread, frame, header
from engines.model import Model
from server.app import Server
from tests.support.held import eventually
from tests.support.serving import address, serving


def trial_of(server: Server) -> Trial:
    return Trial(address(server), f"http://127.0.0.1:{server.metrics_port}/metrics", os.getpid())


def test_frames_and_headers_are_those_of_the_rfcs() -> None:
    assert frame(4, 1, 0, b"") == bytes(3) + b"\x04\x01" + bytes(4)
    assert frame(0, 1, 3, b"ab") == b"\x00\x00\x02\x00\x01\x00\x00\x00\x03ab"
    assert header(":path", "/") == b"\x00\x05:path\x01/"


def test_pictures_of_calls_that_nobody_reads_are_made_and_stay(model: Model) -> None:
    with serving(model) as server:
        seen = trial_of(server)
        assert seen.gauge("images_total") == 0 and seen.idle() and seen.gauge("no_such") is None
        with Unread(seen.address) as caller:
            caller.call(request(steps=1))
            caller.call(request(steps=1, images=2))
            eventually(lambda: seen.gauge("images_total"), 3.0)
            assert server._door._images._live == 2, "nobody has read that they are over"
        eventually(lambda: server._door._images._live, 0)


def test_a_trial_tells_how_a_request_ended(server: Server) -> None:
    code, sentence, seconds = trial_of(server).one(steps=1)
    assert (code, sentence) == ("OK", "") and seconds > 0
    code, sentence, _ = trial_of(server).one(steps=1000)
    assert code == "INVALID_ARGUMENT" and "steps is 1000" in sentence
    assert stalls.refused(trial_of(server), 0) == 0


def test_normal_readers_beside_unread_ones(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "CALLERS", 2)
    monkeypatch.setitem(readers.OTHERS, "preview_every", 0)  # the first preview has the server compile the encoder
    for read in (True, False):
        run = asyncio.run(readers.turn(trial_of(server), 0.05, read=read))
        assert run.p95 > 0 and run.cpu >= 0 and run.memory > 0


def test_the_machine_s_drift_is_in_both_and_is_told() -> None:
    """Each turn is read, never, never, read: what slows down evenly cancels out."""
    slower = [readers.Run(p95, 1.0, 0.0) for p95 in (1.0, 1.1, 1.2, 1.3, 2.0, 2.2, 2.4, 2.6)]
    runs = {True: [slower[0], slower[3], slower[4], slower[7]], False: [*slower[1:3], *slower[5:7]]}
    assert readers.ratios(runs, lambda run: run.p95) == pytest.approx([1.0, 1.0])


def test_the_table_has_each_figure_before_and_after(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def item(folder: Path) -> list[Figure]:
        return [Figure("refused", "requests", 40.0 if folder == tmp_path else 0.0)]

    monkeypatch.setattr(attack, "ITEMS", {"stall": item, "overload": item})
    monkeypatch.setattr("sys.argv", ["attack", "--base", str(tmp_path), "--items", "stall", "--dry"])
    assert attack.main() == 0
    head, line = capsys.readouterr().out.splitlines()
    assert head.split() == ["base", "this"] and line.split() == ["stall:", "refused", "40", "0", "requests"]
    monkeypatch.setattr("sys.argv", ["attack", "--items", "nothing"])
    with pytest.raises(SystemExit):
        attack.main()
    assert "there is no item nothing" in capsys.readouterr().err
