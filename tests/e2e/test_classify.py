"""scripts/classify against a daemon whose classifier is the fake engine, which counts words."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.house import House, running

SCRIPT = Path(__file__).parents[2] / "scripts" / "classify.py"
EXAMPLES = [
    {"prompt": "hello", "label": "simple"},
    {"prompt": "a hard hard one", "label": "hard"},
    {"messages": [{"role": "user", "content": "hi"}], "label": "hard"},
    {"prompt": " ", "label": "simple"},
]


@pytest.fixture
def house(tmp_path: Path) -> House:
    house = House(tmp_path, environ={"KEY": "sk-1", "NARROW": "sk-2"})
    classifier = {"model": "tiny", "labels": {"simple": "alpha", "hard": "beta"}, "fallback": "alpha"}
    route = {"members": ["alpha", "beta"], "policy": "classifier"}
    tables: dict[str, dict[str, object]] = {
        "auth": {"required": True},
        "clients.all": {"key_env": "KEY", "admin": True},
        "clients.narrow": {"key_env": "NARROW", "models": ["smart"]},
        "routes.smart": route | {"classifier": classifier | {"timeout": "5s"}},
    }
    house.configure({name: house.fake() for name in ("tiny", "alpha", "beta")}, **tables)
    return house


async def classify(house: House, examples: Sequence[Any], *words: str, key: str = "sk-1") -> tuple[int, str]:
    """The exit code and what it printed."""
    path = house.root / "labelled.jsonl"
    path.write_text("".join(json.dumps(example) + "\n" for example in examples))
    command = [sys.executable, str(SCRIPT), str(path), "--route", "smart", "--url", house.url, *words]
    done = await asyncio.to_thread(
        subprocess.run,
        command,
        env={"OPENAI_API_KEY": key},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stdout + done.stderr


async def test_it_prints_what_agrees_and_what_it_takes(house: House) -> None:
    async with running(house):
        await asyncio.to_thread(house.cli, "start", "tiny")
        code, told = await classify(house, EXAMPLES, "--least", "0.5")
        assert code == 0, told
        rows = [line.split() for line in told.splitlines()]
        assert ["hard", "2", "1", "1.00", "0.50"] in rows
        assert ["simple", "2", "2", "0.50", "0.50"] in rows
        assert ["simple", "0", "1", "1"] in rows, "the confusion"
        assert "agreement: 2 of 4 (50.0%)" in told
        assert "there is no text of a user" in told
        assert "command: " in told
        assert "machine: " in told
        assert "(n=3)" in told

        code, told = await classify(house, EXAMPLES, "--least", "0.6")
        assert (code, "50.0% agree" in told) == (1, True)
        code, told = await classify(house, EXAMPLES, key="sk-2")
        assert code == 0
        assert "what it adds is not known: cannot ask alpha: status 403" in told
        code, told = await classify(house, [{"label": "hard"}])
        assert (code, "line 1" in told) == (1, True)
        code, told = await classify(house, EXAMPLES, key="sk-3")
        assert (code, "status 401" in told) == (1, True)
