"""[schedule]: names become models, and "local" means something where no zone is written."""

from datetime import UTC, datetime, time
from importlib import resources
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from supervisord_llm.config.zone import local_zone
from supervisord_llm.core.calendar import EVERY_DAY, Hours, Schedule
from tests.config.conftest import Load

MODELS = """
[models.chat]
source = "org/chat"
aliases = ["c"]
[models.code]
source = "org/code"
[models.sql]
source = "/srv/sql"
adapter_of = "code"
[routes.both]
members = ["c", "code"]
aliases = ["any"]
"""


def schedule(loaded: Load, text: str) -> Schedule:
    found = loaded(MODELS + text).schedule
    assert found is not None
    return found


def test_no_table_is_no_schedule(loaded: Load) -> None:
    assert loaded(MODELS).schedule is None


def test_a_window_as_written(loaded: Load) -> None:
    found = schedule(
        loaded,
        """
        [schedule]
        timezone = "America/New_York"
        [[schedule.windows]]
        name = "night"
        from = "22:30"
        to = "06:00"
        days = ["fri", "mon"]
        only = ["code"]
        preload = ["code"]
        drain = "10m"
        fallback = "code"
        """,
    )
    (night,) = found.windows
    assert found.zone == ZoneInfo("America/New_York")
    assert night.hours == Hours(start=time(22, 30), end=time(6), days=frozenset({0, 4}))
    assert (night.name, night.only, night.preload) == ("night", ("code",), ("code",))
    assert (night.drain_s, night.fallback) == (600.0, "code")


@pytest.mark.parametrize(
    ("written", "days"),
    [
        ("", EVERY_DAY),
        (', days = "daily"', EVERY_DAY),
        (', days = "weekdays"', frozenset(range(5))),
        (', days = "weekends"', frozenset({5, 6})),
        (', days = ["sun", "sun"]', frozenset({6})),
    ],
)
def test_days(loaded: Load, written: str, days: frozenset[int]) -> None:
    text = f'[schedule]\nwindows = [{{ name = "n", from = "00:00", to = "24:00"{written} }}]'
    assert schedule(loaded, text).windows[0].hours == Hours(start=time(0), end=time(0), days=days)


def test_a_route_stands_for_its_members_and_an_adapter_for_its_base(loaded: Load) -> None:
    found = schedule(
        loaded,
        """
        [schedule]
        windows = [
            { name = "a", from = "01:00", to = "02:00", only = ["any"], preload = ["c"], fallback = "any" },
            { name = "b", from = "02:00", to = "03:00", only = ["sql"] },
            { name = "c", from = "03:00", to = "04:00", only = [] },
            { name = "d", from = "04:00", to = "05:00" },
        ]
        """,
    )
    assert [window.only for window in found.windows] == [("chat", "code"), ("code",), (), None]
    assert found.windows[0].preload == ("chat",)
    assert found.windows[0].fallback == "both"


# --- the host's zone ---------------------------------------------------------------------------


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A database of zones elsewhere, as some systems have it."""
    berlin = tmp_path / "zoneinfo" / "Europe" / "Berlin"
    berlin.parent.mkdir(parents=True)
    berlin.write_bytes(tzfile("Europe/Berlin"))
    return tmp_path / "zoneinfo"


def tzfile(name: str) -> bytes:
    """What the database has of a zone."""
    return resources.files("tzdata.zoneinfo").joinpath(name).read_bytes()


@pytest.mark.parametrize("environ", [{}, {"TZ": ""}, {"TZ": "/a/file"}, {"TZ": "No/Where"}, {"TZ": ":"}])
def test_it_is_where_localtime_leads_to(database: Path, tmp_path: Path, environ: dict[str, str]) -> None:
    localtime = tmp_path / "localtime"
    localtime.symlink_to(database / "Europe" / "Berlin")
    assert str(local_zone(environ, localtime)) == "Europe/Berlin"


@pytest.mark.parametrize("said", ["Asia/Kolkata", ":Asia/Kolkata"])
def test_tz_counts_before_it(database: Path, tmp_path: Path, said: str) -> None:
    localtime = tmp_path / "localtime"
    localtime.symlink_to(database / "Europe" / "Berlin")
    assert str(local_zone({"TZ": said}, localtime)) == "Asia/Kolkata"


def test_a_copy_of_the_file_has_the_hours_and_no_name(tmp_path: Path) -> None:
    localtime = tmp_path / "localtime"
    localtime.write_bytes(tzfile("Europe/Berlin"))
    zone = local_zone({}, localtime)
    assert str(zone) == "local time"
    noon = datetime(2026, 7, 1, 12, tzinfo=UTC)
    assert noon.astimezone(zone).hour == 14


@pytest.mark.parametrize("content", [None, b"", b"nonsense"])
def test_without_any_it_is_utc(tmp_path: Path, content: bytes | None) -> None:
    localtime = tmp_path / "localtime"
    if content is not None:
        localtime.write_bytes(content)
    assert local_zone({}, localtime) is UTC


def test_where_no_zone_is_written_it_is_the_hosts(loaded: Load) -> None:
    found = loaded(MODELS + "[schedule]\n", {"TZ": "Asia/Kolkata"}).schedule
    assert found is not None
    assert str(found.zone) == "Asia/Kolkata"
