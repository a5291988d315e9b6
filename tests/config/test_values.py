"""Sizes, shares, durations and addresses, read from every form that is accepted."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisord_llm.config.kinds import Unreadable
from supervisord_llm.config.values import (
    DURATION_UNITS,
    SIZE_UNITS,
    read_address,
    read_duration,
    read_duration_range,
    read_share,
    read_size,
)
from tests.config.conftest import UNHURRIED

SIZES = st.integers(0, 2**50)


@UNHURRIED
@given(SIZES, st.sampled_from(sorted(SIZE_UNITS)), st.sampled_from(["", " "]))
def test_a_size_is_its_number_times_its_unit(number: int, unit: str, space: str) -> None:
    assert read_size(f"{number}{space}{unit}") == number * SIZE_UNITS[unit]
    assert read_size(number) == number


@UNHURRIED
@given(st.integers(0, 10**6), st.sampled_from(sorted(DURATION_UNITS)))
def test_a_duration_is_its_number_times_its_unit(number: int, unit: str) -> None:
    assert read_duration(f"{number}{unit}") == pytest.approx(number * DURATION_UNITS[unit])
    assert read_duration(number) == read_duration(f"{number}s") == number


@UNHURRIED
@given(st.integers(1, 10_000))
def test_a_share_is_a_part_of_one(hundredths: int) -> None:
    assert read_share(f"{hundredths / 100}%").fraction == pytest.approx(hundredths / 10_000)


def test_fractions() -> None:
    assert read_size("1.5KiB") == 1536
    assert read_duration("0.5m") == 30
    assert read_duration(0.25) == 0.25


@UNHURRIED
@given(st.text(max_size=8))
def test_what_is_read_at_all_has_a_number_and_a_unit(text: str) -> None:
    for read in (read_size, read_duration, read_share, read_duration_range):
        try:
            read(text)
        except Unreadable:
            continue
        assert re.match(r"[0-9]", text)


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "10",
        "10G",
        "10gib",
        "-1GiB",
        "1e3B",
        ".5GiB",
        "1.GiB",
        "1GiB ",
        "\u0661GiB",
        1.5,
        True,
        None,
        [],
        -1,
    ],
)
def test_what_is_not_a_size(raw: object) -> None:
    with pytest.raises(Unreadable):
        read_size(raw)


@pytest.mark.parametrize(
    "raw", ["", "10", "1h30m", "-1s", "5 min", "1S", float("nan"), float("inf"), -0.1, True, None]
)
def test_what_is_not_a_duration(raw: object) -> None:
    with pytest.raises(Unreadable):
        read_duration(raw)


@pytest.mark.parametrize("raw", ["0%", "100.1%", "90", 0.9, 90, True, "-5%"])
def test_what_is_not_a_share(raw: object) -> None:
    with pytest.raises(Unreadable):
        read_share(raw)


@pytest.mark.parametrize("raw", ["2s", "2s..", "0s..1s", "3s..2s", "1s..2s..3s", 5, "2..3"])
def test_what_is_not_a_range(raw: object) -> None:
    with pytest.raises(Unreadable):
        read_duration_range(raw)


def test_a_range() -> None:
    assert read_duration_range("2s..1m") == (2, 60)


@pytest.mark.parametrize(
    "text",
    ["0.0.0.0:8000", "localhost:0", "my-host.lan:80", "[::]:8000", "[fe80::1%eth0]:1", "unix:/run/a b.sock"],
)
def test_an_address_prints_as_it_was_written(text: str) -> None:
    assert str(read_address(text)) == text


@pytest.mark.parametrize(
    "raw",
    [
        "",
        ":80",
        "a",
        "a:",
        "a:b",
        "::1:80",
        "[]:80",
        "unix:",
        "unix:a",
        "a b:1",
        "http://a:1",
        8000,
        "a:65536",
    ],
)
def test_what_is_not_an_address(raw: object) -> None:
    with pytest.raises(Unreadable):
        read_address(raw)
