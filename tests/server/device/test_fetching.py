"""LoRAs that were forgotten are read beside the device thread: others step and sit down meanwhile, and memory ends."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.errors import CheckpointError
from pipeline.loras.lora import Lora
from pipeline.loras.shelf import Chosen
from server.caller import LOCAL
from server.events import Done, Image
from server.job import Job
from tests.support.patience import PATIENCE
from tests.support.stage import SMALL, Stage, ended, kinds


class Named(Chosen):
    """LoRAs of which there is a name alone."""

    def __init__(self, name: str) -> None:
        super().__init__(())
        object.__setattr__(self, "name", name)

    @property
    def key(self) -> Any:
        return self.name  # type: ignore[attr-defined]


class Shelved:
    """Stands for a shelf: a LoRA lives once it was read; reading waits until it is let, and there may be no room."""

    def __init__(self) -> None:
        self.lives: dict[str, Lora] = {}
        self.room: Callable[[str], bool] = lambda name: True
        self.read: list[tuple[str, str]] = []  # what, and by which thread
        self.let, self.begun = threading.Event(), threading.Semaphore(0)
        self.error: Exception | None = None

    def living(self, chosen: Named) -> Lora | None:
        return self.lives.get(chosen.key)

    def has_room(self, chosen: Named) -> bool:
        return self.room(chosen.key)

    def lora(self, chosen: Named) -> Lora:
        self.read.append((chosen.key, threading.current_thread().name))
        self.begun.release()
        assert self.let.wait(PATIENCE)
        if self.error:
            raise self.error
        return self.lives.setdefault(chosen.key, Lora(32, {}, None))


@pytest.fixture
def stage() -> Stage:
    return Stage(loras=Shelved())


def shelf(stage: Stage) -> Shelved:
    return stage.turn._fetching._shelf  # type: ignore[return-value]


def submit(stage: Stage, name: str, word: int = 0, caller: str = LOCAL) -> Job:
    job = stage.submit(word, caller=caller)
    job.wish = dataclasses.replace(job.wish, loras=Named(name))
    return job


def read(stage: Stage) -> None:
    """Let what is read be read, and wait for its end."""
    with stage.jobs.changed:
        shelf(stage).let.set()
        assert stage.jobs.changed.wait_for(lambda: not stage.turn._fetching.at_work, PATIENCE)
    shelf(stage).let.clear()


def finish(stage: Stage) -> None:
    while stage.turn.due:
        stage.take()


def test_who_has_a_lora_in_memory_sits_at_once(stage: Stage) -> None:
    shelf(stage).lives["a"] = Lora(32, {}, None)
    job = submit(stage, "a")
    assert ("sit", SMALL, 0) in stage.take()
    finish(stage)
    assert kinds(job)[-1] is Done and shelf(stage).read == []


def test_one_that_was_forgotten_is_read_by_another_thread_and_nothing_turns_meanwhile(stage: Stage) -> None:
    job = submit(stage, "a")
    assert stage.take() == [] and not stage.turn.due and stage.turn.fetches
    assert stage.take() == [] and shelf(stage).begun.acquire(timeout=PATIENCE)
    assert shelf(stage).read == [("a", "LoRA")], "not by this one, and once"
    read(stage)
    assert stage.turn.due and not stage.turn.fetches
    assert ("sit", SMALL, 0) in stage.take()
    finish(stage)
    assert kinds(job)[-1] is Done and len(shelf(stage).read) == 1


def test_other_callers_sit_down_and_step_while_it_is_read(stage: Stage) -> None:
    forgotten, behind = submit(stage, "a"), stage.submit(1)
    assert stage.take() == [] and not stage.turn.due
    other = stage.submit(2, caller="other")
    assert stage.turn.due, "somebody has come"
    finish(stage)
    assert kinds(other)[-1] is Done and not kinds(forgotten) and not kinds(behind)
    read(stage)
    finish(stage)
    assert kinds(forgotten)[-1] is Done and kinds(behind)[-1] is Done


def test_one_that_is_another_file_by_now_is_told_in_its_own_words(stage: Stage) -> None:
    shelf(stage).error = CheckpointError("LoRA a was replaced while it was used; ask again")
    broken, other = submit(stage, "a"), stage.submit(2)
    stage.take()
    read(stage)
    finish(stage)
    assert ended(broken) == ("INVALID_ARGUMENT", "loras: LoRA a was replaced while it was used; ask again")
    assert kinds(other)[-2:] == [Image, Done] and stage.empty


def test_who_waits_for_memory_waits_until_others_have_left(stage: Stage) -> None:
    shelf(stage).lives["a"] = Lora(32, {}, None)
    first, large = submit(stage, "a"), submit(stage, "b", 1)
    shelf(stage).room = lambda name: first.over
    shelf(stage).let.set()
    while not first.over:
        stage.take()
        assert shelf(stage).read == [] and (first.over or stage.turn.due)
    finish(stage)
    read(stage)
    finish(stage)
    assert kinds(large)[-1] is Done and [name for name, _ in shelf(stage).read] == ["b"]


def test_what_is_kept_is_let_go(stage: Stage) -> None:
    """Of one whose picture has gone nothing stays: else the next one might never have room."""
    job = submit(stage, "a")
    stage.take()
    read(stage)
    job.cancel()
    stage.take()
    submit(stage, "b")
    shelf(stage).room = lambda name: stage.turn._fetching._read is None and stage.turn._fetching._held is None
    stage.take()
    for _ in "ab":
        assert shelf(stage).begun.acquire(timeout=PATIENCE)
    assert [name for name, _ in shelf(stage).read] == ["a", "b"]
    read(stage)
