"""Files on disk to load, and nothing of this host's own configuration."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from supervisord_llm.config import credentials
from supervisord_llm.config.load import load
from supervisord_llm.config.model import Config
from supervisord_llm.config.problem import Problem
from supervisord_llm.errors import ConfigError

UNHURRIED = settings(deadline=None)
"""For properties: a busy machine is not a bug."""

SHORT = {"RUNTIME_DIRECTORY": "/run/llm-supervisor"}

Load = Callable[..., Config]
Problems = Callable[..., list[Problem]]


@pytest.fixture(autouse=True)
def _no_system_secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(credentials, "SYSTEM_FILE", tmp_path / "system" / "llm-supervisor.env")


@pytest.fixture
def loaded(tmp_path: Path) -> Load:
    """Load `text` as config.toml, beside `drop_ins` (name -> text), in `environ`."""

    def load_text(text: str | bytes, environ: dict[str, str] | None = None, **drop_ins: str) -> Config:
        data = text if isinstance(text, bytes) else text.encode()
        (tmp_path / "config.toml").write_bytes(data)
        for name, drop_in in drop_ins.items():
            (tmp_path / "conf.d").mkdir(exist_ok=True)
            (tmp_path / "conf.d" / f"{name}.toml").write_text(drop_in)
        return load(tmp_path / "config.toml", SHORT | (environ or {}))

    return load_text


@pytest.fixture
def problems(loaded: Load) -> Problems:
    """The problems of loading `text`."""

    def refused(text: str | bytes, environ: dict[str, str] | None = None, **drop_ins: str) -> list[Problem]:
        with pytest.raises(ConfigError) as raised:
            loaded(text, environ, **drop_ins)
        found = raised.value.problems
        assert all(isinstance(problem, Problem) for problem in found)
        return [problem for problem in found if isinstance(problem, Problem)]

    return refused
