"""The policy: whom it lets in, and what it says to the others."""

from __future__ import annotations

import asyncio
import base64
from datetime import date
from pathlib import Path

import pytest

from server.access.keys import Keys
from server.access.policy import Policy
from server.errors import Forbidden, OverRate, Unauthenticated
from tests.support.keys import entry, token, write_keys


def called(policy: Policy, sent: list[str], address: str = "x") -> str:
    return asyncio.run(policy.caller(sent, address))


def bearer(name: str) -> str:
    return f"Bearer {token(name)}"


@pytest.fixture
def now() -> list[float]:
    return [100.0]


@pytest.fixture
def refused() -> list[str]:
    return []


@pytest.fixture
def policy(tmp_path: Path, now: list[float], refused: list[str]) -> Policy:
    write_keys(
        tmp_path / "keys.yaml",
        entry("a", calls=3, priority=2),
        entry("slow", rate=2, admin=True),
        entry("old", expires=date(2020, 1, 1)),
        entry("lost", revoked=True),
    )
    return Policy(Keys(tmp_path / "keys.yaml"), refused.append, lambda: now[0])


def test_without_keys_everybody_comes_by_address() -> None:
    policy = Policy()
    assert called(policy, ["Bearer whatever"], "10.0.0.7") == "10.0.0.7"
    assert policy.key_of("10.0.0.7") is None and policy.calls_of("10.0.0.7", 512) == 512
    with pytest.raises(Forbidden):
        policy.check_admin("10.0.0.7")


def test_how_a_token_comes(policy: Policy) -> None:
    basic = base64.b64encode(f"anybody:{token('a')}".encode()).decode()
    for sent in (bearer("a"), f"bearer  {token('a')} ", f"BASIC {basic}"):
        assert called(policy, [sent], "10.0.0.7") == "key:a"
    assert called(policy, [bearer("a"), bearer("a")]) == "key:a", "twice the same"


@pytest.mark.parametrize(
    "sent",
    [
        ["Bearer"],
        [""],
        ["Bearer latentd_" + "A" * 43],
        ["Bearer anything"],
        ["Basic ????"],
        ["Basic /w=="],
        ["Basic"],
        ["Digest a"],
        [bearer("old")],
        [bearer("lost")],
        [token("a")],
        [bearer("a"), bearer("slow")],
        [bearer("a") + "\ud800"],
        [f"Bearer {token('a')} and more"],
    ],
)
def test_wrong_unknown_expired_and_revoked_hear_the_same(policy: Policy, refused: list[str], sent: list[str]) -> None:
    with pytest.raises(Unauthenticated) as error:
        called(policy, sent, "10.0.0.7")
    assert str(error.value) == "the key is none that counts here: it is unknown, has expired, or was revoked"
    assert refused == ["key"]


def test_who_brings_none_hears_how(policy: Policy) -> None:
    with pytest.raises(Unauthenticated, match="authorization: Bearer"):
        called(policy, [], "10.0.0.7")


def test_the_log_says_which_once_and_never_a_token(policy: Policy, caplog) -> None:
    for name in ("old", "lost", "old", "lost"):
        with pytest.raises(Unauthenticated):
            called(policy, [bearer(name)], "10.0.0.7")
    assert [record.args for record in caplog.records] == [("old", "has expired on 2020-01-01"), ("lost", "was revoked")]
    assert "latentd_" not in caplog.text


def test_a_rate_is_a_minute_s_requests_and_says_when_to_come_again(
    policy: Policy, now: list[float], refused: list[str]
) -> None:
    for _ in range(2):
        called(policy, [bearer("slow")])
    with pytest.raises(OverRate, match="key:slow asks more often than 2 times a minute") as error:
        called(policy, [bearer("slow")])
    assert error.value.retry_after == pytest.approx(30) and refused == ["rate"]
    assert called(policy, [bearer("a")]) == "key:a", "others have theirs"
    now[0] += error.value.retry_after
    called(policy, [bearer("slow")])
    now[0] += 1e6
    for _ in range(2):
        called(policy, [bearer("slow")])
    with pytest.raises(OverRate):
        called(policy, [bearer("slow")])


def test_what_a_key_may(policy: Policy) -> None:
    key = policy.key_of("key:a")
    assert key is not None and key.priority == 2
    assert (policy.calls_of("key:a", 512), policy.calls_of("key:a", 2), policy.calls_of("key:slow", 512)) == (3, 2, 512)
    policy.check_admin("key:slow")
    for caller in ("key:a", "key:nobody", "slow"):
        with pytest.raises(Forbidden):
            policy.check_admin(caller)
