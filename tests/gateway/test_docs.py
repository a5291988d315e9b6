"""docs/http.md names what there is."""

import re
from pathlib import Path

from supervisord_llm.core.fleet import Fleet
from supervisord_llm.gateway.app import ENDPOINTS
from supervisord_llm.gateway.errors import TABLE
from supervisord_llm.gateway.target import POSTED
from supervisord_llm.telemetry.metrics import Metrics

PAGE = (Path(__file__).parents[2] / "docs" / "http.md").read_text()


def test_every_endpoint_is_told() -> None:
    for path in (*ENDPOINTS, *(name for name in POSTED if not name.startswith("audio/"))):
        assert path in PAGE


def test_every_error_is_told_with_its_status() -> None:
    told: dict[str, int] = {}
    for status, codes in re.findall(r"^\| (\d{3}) \| (.*) \|$", PAGE, re.MULTILINE):
        told |= dict.fromkeys(re.findall(r"`([a-z_]+)`", codes), int(status))
    assert told == {code: row.status for code, row in TABLE.items()}


def test_every_metric_is_told() -> None:
    metrics = Metrics(Fleet)
    metrics.configure(("alpha",))
    metrics.start("alpha", "ready", 1.0)
    text = metrics.render("")[0].decode()
    assert set(re.findall(r"^# TYPE (\w+)", text, re.MULTILINE)) == set(
        re.findall(r"`(llm_supervisor_\w+)`", PAGE)
    )
