"""Who tries keys waits longer each time, and the memory of it is bounded."""

import logging

import pytest

from supervisord_llm.errors import Refused
from supervisord_llm.gateway.limits import lockout
from supervisord_llm.gateway.limits.lockout import FORGET_S, FREE_TRIES, LONGEST_S, Lockout


def wait_s(doors: Lockout, peer: str, now: float) -> float:
    """A wrong key at `now`: how long it says to wait, 0 for an ordinary 401."""
    try:
        doors.wrong_key(peer, now)
    except Refused as refused:
        return refused.retry_after_s or -1.0
    return 0.0


def locked(doors: Lockout, peer: str, now: float) -> None:
    for _ in range(FREE_TRIES):
        assert wait_s(doors, peer, now) == 0


def test_the_delay_doubles_up_to_a_limit(caplog: pytest.LogCaptureFixture) -> None:
    doors, now = Lockout(), 1000.0
    with caplog.at_level(logging.WARNING):
        locked(doors, "10.0.0.1", now)
        delays = []
        for _ in range(12):
            delay = wait_s(doors, "10.0.0.1", now)
            assert wait_s(doors, "10.0.0.1", now + delay / 2) == pytest.approx(delay / 2), (
                "a try in it changes nothing"
            )
            delays.append(delay)
            now += delay
            assert wait_s(doors, "10.0.0.1", now) == 0
    assert delays == [1, 2, 4, 8, 16, 32, 64, 128, 256, LONGEST_S, LONGEST_S, LONGEST_S]
    (said,) = caplog.messages
    assert said.startswith("10.0.0.1 sent 10 wrong API keys")


def test_others_are_not_concerned_and_time_heals() -> None:
    doors = Lockout()
    locked(doors, "10.0.0.1", 0.0)
    assert wait_s(doors, "10.0.0.2", 0.5) == 0
    assert wait_s(doors, "10.0.0.1", 0.5) == pytest.approx(0.5)
    locked(doors, "10.0.0.1", 1.0 + FORGET_S)


def test_an_ipv6_host_cannot_change_its_address_to_go_on() -> None:
    doors = Lockout()
    for number in range(FREE_TRIES):
        assert wait_s(doors, f"2001:db8::{number + 1:x}", 0.0) == 0
    assert wait_s(doors, "2001:db8::ffff", 0.0) == 1


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lockout, "MAX_ADDRESSES", 50)
    doors = Lockout()
    for number in range(1000):
        assert wait_s(doors, f"10.0.{number // 256}.{number % 256}", 0.0) == 0
    assert len(doors) == 50
