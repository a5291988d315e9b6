"""`upgrade` while the daemon goes away; tests/e2e/test_upgrade.py has the rest."""

import argparse
import subprocess
from pathlib import Path

import pytest

from supervisord_llm.cli import upgrade
from supervisord_llm.cli.client import Client, Unreachable
from supervisord_llm.errors import SupervisorError


def test_a_daemon_that_is_stopped_meanwhile_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = subprocess.Popen(["sleep", "60"])

    class Stopped(Client):
        def get(self, *path: str, **query: object) -> object:
            if daemon.poll() is not None:
                raise Unreachable("cannot reach the daemon")
            return {"started_at": "then", "pid": daemon.pid, "version": "1.0", "models": {}}

        def post(self, *path: str, **query: object) -> object:
            daemon.kill()
            daemon.wait()
            return {"within_s": 90.0}

    monkeypatch.setattr(upgrade, "daemon_of", lambda _: Stopped(Path("/nonexistent")))
    monkeypatch.setattr(upgrade, "GONE_S", 0.1)
    with pytest.raises(SupervisorError, match="the daemon ended meanwhile"):
        upgrade._upgrade(argparse.Namespace(config=Path("/nonexistent"), json=False))


def test_models_elsewhere_are_not_missed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = {"engine": "vllm", "state": "ready", "launch": 3}
    far = {"engine": "remote", "state": "ready", "launch": 1}

    told = {"pid": 1, "version": "1.0", "upgrade_failure": ""}
    answers = iter(
        (
            told | {"started_at": "then", "models": {"a": here, "far": far}},
            told | {"started_at": "now", "models": {"a": here, "far": far | {"state": "stopped"}}},
        )
    )

    class Upgraded(Client):
        def get(self, *path: str, **query: object) -> object:
            return next(answers)

        def post(self, *path: str, **query: object) -> object:
            return {"within_s": 9.0}

    monkeypatch.setattr(upgrade, "daemon_of", lambda _: Upgraded(Path("/nonexistent")))
    assert upgrade._upgrade(argparse.Namespace(config=None, json=False)) == 0
    assert capsys.readouterr() == ("1.0 -> 1.0; 1 engine kept: a\n", "")
