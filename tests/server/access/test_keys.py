"""The file of keys: what it may hold, when it is read anew, and what is told of what is wrong with it."""

from __future__ import annotations

import asyncio
import os
import threading
from datetime import UTC, date, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from server.access import watched
from server.access.command import main
from server.access.key import Key, KeyFileError, digest_of, new_token
from server.access.key_file import read_keys
from server.access.keys import Keys
from tests.support.keys import entry, token, write_keys
from tests.support.patience import PATIENCE

ALL = {"priority": 1, "weight": 2.5, "calls": 8, "rate": 60, "admin": True, "expires": date(2031, 1, 31)}


def anew(keys: Keys, name: str) -> Key | None:
    """The key of a name's token, as the file has it by now."""
    asyncio.run(keys.fresh())
    return keys.of(token(name))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.yaml"


def test_every_field_is_read(file: Path) -> None:
    keys = Keys(write_keys(file, entry("studio", **ALL), entry("night", revoked=True)))
    studio, night = read_keys(file)
    assert studio == Key("studio", digest_of(token("studio")) or "", 1, 2.5, 8, 60, True, date(2031, 1, 31))
    assert night.revoked and (night.weight, night.priority, night.calls, night.rate) == (1.0, 0, None, None)
    assert keys.of(token("studio")) == studio and keys.of(token("night")) == night
    assert keys.of(new_token()) is None and keys.of("") is None and keys.of(studio.digest) is None
    assert keys.called("key:studio") == studio and keys.called("studio") is None


def test_a_word_that_somebody_chose_is_no_key() -> None:
    assert digest_of("secret") is None and digest_of(new_token()[:-1]) is None
    assert len({new_token() for _ in range(100)}) == 100


def test_a_key_counts_to_the_end_of_its_last_day() -> None:
    key = Key("a", "0" * 64, expires=date(2027, 1, 31))
    assert not key.lapsed(datetime(2027, 1, 31, 23, 59, tzinfo=UTC)) and key.lapsed(datetime(2027, 2, 1, tzinfo=UTC))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"name": "Studio"}, "entry 1: name is something else than what it takes"),
        ({"digest": "sha256:abc"}, "entry 1 (a): digest is something else than what it takes: sha256: and 64 hex"),
        ({"digest": "latentd_secret"}, "digest is something else"),
        ({"digest": None}, "entry 1 (a) lacks digest; it takes sha256: and 64 hex digits"),
        ({"token": "latentd_secret"}, "entry 1 (a) has an unknown field 'token'"),
        ({"wieght": 2}, "has an unknown field 'wieght'; did you mean weight?; there are: name, digest, "),
        ({"weight": 0}, "entry 1 (a): weight is something else than what it takes: a number from 0.01 to 100"),
        ({"weight": float("nan")}, "weight is"),
        ({"weight": 10**400}, "weight is"),
        ({"calls": True}, "calls is"),
        ({"calls": 0}, "calls is"),
        ({"rate": "fast"}, "rate is something else than what it takes: requests a minute"),
        ({"rate": 0}, "rate is"),
        ({"priority": 1.5}, "priority is"),
        ({"admin": 1}, "admin is"),
        ({"expires": "tomorrow"}, "expires is something else than what it takes: a date"),
        ({"expires": datetime(2027, 1, 1)}, "expires is"),
        ({"revoked": "no"}, "revoked is"),
    ],
)
def test_what_is_wrong_is_told_by_name_and_never_by_value(file: Path, fields: dict[str, Any], told: str) -> None:
    write_keys(file, {**entry("a"), **fields})
    with pytest.raises(KeyFileError) as refused:
        Keys(file)
    assert told in str(refused.value) and str(file) in str(refused.value)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "must have one field, keys, with a list in it"),
        ("keys: latentd_secret", "must have one field"),
        ("keys: []\nnames: []", "must have one field"),
        ("keys: [latentd_secret]", "entry 1 is no mapping"),
        ("keys: [{name: a}]", "entry 1 (a) lacks digest"),
        ("keys:\n  - 'latentd_secret", "cannot be read as YAML in line"),
        ("keys: [!!python/object:os.system {}]", "cannot be read as YAML"),
        ("keys: \ud800".encode("utf-16", "surrogatepass").decode("latin-1"), "cannot be read as YAML"),
        ("keys: [{name: a, priority: !!int ''}]", "cannot be read as YAML"),
        ("keys: [{name: a, admin: !!bool perhaps}]", "cannot be read as YAML"),
        ("keys: [{name: a, expires: !!timestamp secret}]", "cannot be read as YAML"),
        ("keys: []\nkeys: []", "must have one field"),
        ("keys: []\n---\nkeys: []", "must have one field"),
        ("- keys", "must have one field"),
        ("keys: *elsewhere", "must have one field"),
        ("keys: [*elsewhere]", "cannot be read as YAML in line 1"),
        ("keys: [{name: a}", "cannot be read as YAML"),
        ("#" * (1 << 20) + "\nkeys: []", "has more than 1048576 bytes"),
    ],
)
def test_a_file_of_something_else_is_refused(file: Path, text: str, told: str) -> None:
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(KeyFileError) as refused:
        read_keys(file)
    assert told in str(refused.value) and "secret" not in str(refused.value)


def test_a_file_that_is_not_there_is_refused(file: Path) -> None:
    with pytest.raises(KeyFileError, match="cannot be read: No such file"):
        Keys(file)


def test_names_and_tokens_are_there_once(file: Path) -> None:
    with pytest.raises(KeyFileError, match="has the name of a more than once"):
        Keys(write_keys(file, entry("a"), {**entry("b"), "name": "a"}))
    with pytest.raises(KeyFileError, match="has the digest of b more than once"):
        Keys(write_keys(file, entry("a"), {**entry("a"), "name": "b"}))


def test_a_file_that_changes_counts_at_once_and_a_broken_one_changes_nothing(file: Path, caplog) -> None:
    keys = Keys(write_keys(file, entry("a")))
    write_keys(file, entry("a"), entry("b"))
    assert anew(keys, "b") is not None
    for spoil in (lambda: file.write_text("keys: ["), file.unlink):
        spoil()
        caplog.clear()
        assert anew(keys, "b") is not None and anew(keys, "a") is not None
        assert [record.levelname for record in caplog.records] == ["ERROR"], "once"
    write_keys(file, entry("a", revoked=True))
    key = anew(keys, "a")
    assert key is not None and key.revoked and anew(keys, "b") is None


@pytest.mark.timeout(20)
def test_what_is_no_file_holds_nobody_up(file: Path, caplog) -> None:
    keys = Keys(write_keys(file, entry("a")))
    for make in (os.mkfifo, os.mkdir):
        file.unlink()
        make(file)
        assert anew(keys, "a") is not None
        with pytest.raises(KeyFileError, match=r"is no regular file|Is a directory"):
            Keys(file)
        file.rmdir() if file.is_dir() else file.unlink()
        write_keys(file, entry("a"))
        assert anew(keys, "a") is not None
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 2


def test_a_folder_that_a_link_stands_for_changes_as_kubernetes_changes_it(tmp_path: Path) -> None:
    for version, names in (("..1", "a"), ("..2", "ab")):
        (tmp_path / version).mkdir()
        write_keys(tmp_path / version / "keys.yaml", *map(entry, names))
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "keys.yaml").symlink_to("..data/keys.yaml")
    keys = Keys(tmp_path / "keys.yaml")
    assert anew(keys, "b") is None
    (tmp_path / "..new").symlink_to("..2")
    (tmp_path / "..new").rename(tmp_path / "..data")
    assert anew(keys, "b") is not None


def test_who_comes_while_a_file_is_read_waits_for_it_and_nobody_else_does(file: Path, monkeypatch) -> None:
    """It is read once, in a thread; who leaves meanwhile takes it from nobody."""
    keys = Keys(write_keys(file, entry("a")))
    begun, go_on, reads = threading.Event(), threading.Event(), []

    def slowly(path: Path) -> tuple[Key, ...]:
        reads.append(threading.current_thread())
        begun.set()
        assert go_on.wait(PATIENCE)
        return read_keys(path)

    async def life() -> None:
        await keys.fresh()
        assert not reads, "nothing has changed"
        monkeypatch.setattr("server.access.keys.read_keys", slowly)
        write_keys(file, entry("a", revoked=True))
        leaves, *waiting = [asyncio.create_task(keys.fresh()) for _ in range(3)]
        assert await asyncio.to_thread(begun.wait, PATIENCE)
        leaves.cancel()
        done, _ = await asyncio.wait([leaves])
        assert leaves in done and not any(task.done() for task in waiting), "and this goes on beside it"
        go_on.set()
        await asyncio.gather(*waiting)
        assert reads != [threading.main_thread()] and len(reads) == 1

    asyncio.run(life())
    key = keys.of(token("a"))
    assert key is not None and key.revoked


def test_what_could_not_be_read_for_a_while_is_tried_again(file: Path, monkeypatch, caplog) -> None:
    """It may have been for want of descriptors, and a key that was revoked meanwhile must not stay for good."""
    file.touch()
    now, said = [0.0], ["first"]
    monkeypatch.setattr(watched, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def read() -> str:
        if not said:
            raise KeyFileError("too many open files")
        return said.pop()

    held = watched.Watched([file], read, "keys")
    file.write_text("changed")
    for now[0] in (1.0, 5.0, 12.0):
        assert held.current() == "first"
    assert len(caplog.records) == 1
    said.append("second")
    assert held.current() == "first", "not at each call"
    now[0] = 30.0
    assert held.current() == held.current() == "second"


def test_the_command_prints_a_token_and_what_the_file_takes(file: Path, capsys) -> None:
    assert main(["new", "studio"]) == 0
    out, error = capsys.readouterr()
    entries = yaml.safe_load("keys:\n" + error.split("`keys:`\n", 1)[1])
    file.write_text(yaml.safe_dump(entries))
    key = Keys(file).of(out.strip())
    assert key is not None and key.name == "studio" and out.strip() not in error


@pytest.mark.parametrize("argv", [[], ["new"], ["old", "a"], ["new", "a", "b"], ["new", "Not A Name"]])
def test_the_command_refuses(argv: list[str], capsys) -> None:
    assert main(argv) == 2
    assert capsys.readouterr().out == ""
