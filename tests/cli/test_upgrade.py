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

    monkeypatch.setattr(upgrade, "Client", Stopped)
    monkeypatch.setattr(upgrade, "GONE_S", 0.1)
    with pytest.raises(SupervisorError, match="the daemon ended meanwhile"):
        upgrade._upgrade(argparse.Namespace(config=Path("/nonexistent"), json=False))
