"""Token buckets, pure: whatever comes and whenever, no more passes than the rate and the burst allow."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisord_llm.config.model import Rate
from supervisord_llm.errors import Refused
from supervisord_llm.gateway.limits import buckets
from supervisord_llm.gateway.limits.buckets import SLACK, Addresses, Bucket, bucket, place
from tests.config.conftest import UNHURRIED

BUCKETS = st.builds(
    Bucket, st.integers(1, 500), st.sampled_from([0.001, 0.01, 1 / 3, 1.0, 60.0, 3600.0, 86400.0])
)
STARTS = st.sampled_from([0.0, 1.5, 86400.0, 3e7])
"""Monotonic time: seconds since the host started."""


@UNHURRIED
@given(BUCKETS, STARTS)
def test_a_rested_bucket_gives_its_size_at_once_and_then_one_an_interval(each: Bucket, now: float) -> None:
    full_at = 0.0
    for left in range(each.size, 0, -1):
        assert each.left(full_at, now) == left
        full_at, wait_s = each.take(full_at, now)
        assert wait_s == 0
    assert each.left(full_at, now) == 0
    full_at, wait_s = each.take(full_at, now)
    assert wait_s == pytest.approx(each.interval_s, rel=2 * SLACK)
    full_at, wait_s = each.take(full_at, now + wait_s)
    assert wait_s == 0
    assert each.take(full_at, now + each.interval_s)[1] > 0


@UNHURRIED
@given(BUCKETS, STARTS, st.lists(st.floats(0, 3), max_size=300))
def test_never_more_than_the_rate_and_the_burst(each: Bucket, start: float, pauses: list[float]) -> None:
    """Over any stretch of time; `pauses` are in intervals, between one request and the next."""
    now, full_at = start, 0.0
    passed: list[float] = []
    for pause in pauses:
        now += pause * each.interval_s
        before = full_at
        full_at, wait_s = each.take(full_at, now)
        assert wait_s >= 0
        assert 0 <= each.left(full_at, now) <= each.size
        if wait_s:
            assert full_at == pytest.approx(max(before, now)), "what is refused takes nothing"
        else:
            passed.append(now)
    for count in range(1, len(passed) + 1):
        for first in range(len(passed) - count + 1):
            stretch_s = passed[first + count - 1] - passed[first]
            assert count <= each.size + stretch_s / each.interval_s + 2 * SLACK


@UNHURRIED
@given(BUCKETS, BUCKETS, STARTS, st.integers(0, 1000))
def test_a_reload_counts_at_once(old: Bucket, new: Bucket, now: float, taken: int) -> None:
    """What was taken of a slow bucket does not keep a fast one waiting longer than if it were empty."""
    full_at = 0.0
    for _ in range(min(taken, old.size)):
        full_at, _ = old.take(full_at, now)
    _, wait_s = new.take(full_at, now)
    assert 0 <= wait_s <= new.interval_s * (1 + 2 * SLACK)


def test_without_a_burst_a_bucket_holds_what_the_rate_counts() -> None:
    assert bucket(None, None) is None
    assert bucket(Rate(60, 60.0), None) == Bucket(60, 1.0)
    assert bucket(Rate(60, 60.0), 5) == Bucket(5, 1.0)


@pytest.mark.parametrize(
    ("peer", "counted"),
    [
        ("192.168.1.7", "192.168.1.7"),
        ("::ffff:192.168.1.7", "192.168.1.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::1", "2001:db8:1:2::/64"),
        ("::1", "::/64"),
        ("fe80::1", "fe80::1"),
        ("fe80::1%eth0", "fe80::1%eth0"),
    ],
)
def test_what_counts_as_one_address(peer: str, counted: str) -> None:
    assert place(peer) == counted


def test_addresses_are_counted_apart_and_bounded_in_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "MAX_ADDRESSES", 100)
    addresses, one = Addresses(), Bucket(1, 10.0)
    addresses.take("10.0.0.1", one, 0.0)
    with pytest.raises(Refused) as refused:
        addresses.take("10.0.0.1", one, 1.0)
    assert refused.value.code == "rate_limit_exceeded"
    assert refused.value.retry_after_s == pytest.approx(9)
    for number in range(1000):
        addresses.take(f"2001:db8:0:{number:x}::1", one, 2.0)
        with pytest.raises(Refused):  # its last request is the newest, so it is not forgotten
            addresses.take("10.0.0.1", one, 2.0)
    assert len(addresses) == 100
