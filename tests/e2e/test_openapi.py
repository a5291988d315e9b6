"""Schemathesis against the real daemon: what its description says, and what it does with everything else."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.e2e.house import House, running

SCHEMATHESIS = Path(sys.executable).parent / "schemathesis"
KEY = "sk-boss"
ENDLESS = "/admin/events"
FATAL = "/admin/upgrade"
"""The daemon would be another program afterwards."""

WINDOW = {"name": "night", "from": "02:00", "to": "06:00"}


def narrowed(description: Any, models: list[str]) -> Any:
    """With the names that exist, so that more than 404 is met, and without answers that never end."""
    for path in (ENDLESS, FATAL):
        del description["paths"][path]
    override = description["paths"]["/admin/schedule"]["post"].pop("requestBody")
    for methods in description["paths"].values():
        for parameter in methods.get("parameters", ()):
            parameter["schema"] = {"enum": models}
        order = methods.get("post", {}).get("requestBody")
        if order is not None:
            properties = order["content"]["application/json"]["schema"]["properties"]
            properties |= {name: {"enum": models} for name in properties}
    properties = override["content"]["application/json"]["schema"]["properties"]
    properties |= {"window": {"enum": [WINDOW["name"], None]}, "for": {"enum": ["1h", 0.5, None]}}
    description["paths"]["/admin/schedule"]["post"]["requestBody"] = override
    description["paths"]["/admin/logs/{model}"]["get"]["parameters"].pop()  # follow
    return description


@pytest.mark.slow
async def test_the_admin_api_is_as_described_and_bears_any_input(
    house: House, web: aiohttp.ClientSession, tmp_path: Path
) -> None:
    clients = {"boss": {"key_env": "BOSS_KEY", "admin": True}}
    house.environ["BOSS_KEY"] = KEY
    models = {name: house.fake() for name in ("alpha", "beta")}
    schedule = {"timezone": "UTC", "windows": [WINDOW]}
    house.configure(models, auth={"required": True}, clients=clients, schedule=schedule)
    async with running(house):
        headers = {"Authorization": f"Bearer {KEY}"}
        async with web.get("/admin/openapi.json", headers=headers) as answer:
            description = await answer.json()
        file = tmp_path / "openapi.json"
        file.write_text(json.dumps(narrowed(description, list(models))))
        done = subprocess.run(
            [
                *(SCHEMATHESIS, "run", file, "--url", house.url, "--header", f"Authorization: Bearer {KEY}"),
                *("--phases", "examples,coverage,fuzzing", "--max-examples", "3", "--seed", "1"),
                *("--request-timeout", "20", "--continue-on-failure", "--no-color"),
                *("--exclude-checks", "ignored_auth"),  # many wrong keys are 429, which is as it should be
            ],
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Traceback" not in house.log
