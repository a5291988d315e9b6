"""Starts that fail one after the other are tried ever less often."""

import pytest

from supervisord_llm.core.holdback import hold_s

NOW = 10_000.0


@pytest.mark.parametrize(
    ("failed_at", "expected_s"),
    [
        ((), 0),
        ((NOW - 3, NOW - 2, NOW - 1), 0),
        ((NOW - 4, NOW - 3, NOW - 2, NOW - 1), 1),
        ((NOW - 1,) * 5, 2),
        ((NOW - 1,) * 6, 4),
        ((NOW - 1,) * 9, 32),
        ((NOW - 1,) * 10, 60),
        ((NOW - 1,) * 10_000, 60),
        ((NOW - 601,) * 10, 0),
        ((NOW - 601,) * 10 + (NOW - 599,) * 4, 1),
        ((NOW + 1,) * 10, 0),  # of another boot, in a directory that outlived it
    ],
)
def test_it_is_doubled_from_the_fifth_on_up_to_a_minute(
    failed_at: tuple[float, ...], expected_s: float
) -> None:
    assert hold_s(failed_at, NOW) == expected_s


def test_a_daemon_that_always_fails_at_once_is_tried_at_most_once_a_minute_for_ever() -> None:
    failed_at: list[float] = []
    now = NOW
    for _ in range(500):
        now += hold_s(failed_at, now)
        failed_at.append(now)
        now += 0.7  # the start that fails, and RestartSec=
    recent = [at for at in failed_at if at > now - 3600]
    assert len(recent) <= 66  # of ten minutes, nine or ten are remembered
