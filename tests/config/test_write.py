"""Writing a configuration, and the signature of a model."""

import dataclasses
import stat
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisord_llm.config.model import Limits, Model, Queue, RequestPolicy, Share, Venv
from supervisord_llm.config.signature import signature
from supervisord_llm.config.write import write_config
from supervisord_llm.errors import ConfigError
from tests.config.conftest import UNHURRIED
from tests.config.test_positions import KEYS, VALUES

DATA: dict[str, Any] = {
    "server": {"listen": ["127.0.0.1:8000"]},
    "models": {"qwen2.5": {"source": '/a b/"c"', "flags": {"max-model-len": 8, "hf-overrides": {"a": [1]}}}},
}  # fmt: skip


def test_what_is_written_is_read_back_below_its_header(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    write_config(file, DATA, header="Made for this machine.\n\nEdit it.")
    text = file.read_text()
    assert text.startswith("# Made for this machine.\n#\n# Edit it.\n\n")
    assert tomllib.loads(text) == DATA
    assert list(tmp_path.iterdir()) == [file]
    assert stat.S_IMODE(file.stat().st_mode) == 0o644


def test_a_file_that_exists_keeps_its_mode(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.touch(mode=0o600)
    write_config(file, DATA)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("data", "place"),
    [
        ({"a": {"b": "\\x41"}}, "a.b would be read back as something else"),
        ({"a": [1, {}]}, "the writer failed"),
        ({"models": {"x": {"flags": {"gone": None}}}}, "models.x.flags"),
    ],
)
def test_what_the_writer_would_spoil_leaves_the_file_as_it_was(
    data: dict[str, Any], place: str, tmp_path: Path
) -> None:
    file = tmp_path / "config.toml"
    file.write_text("# as it was\n")
    with pytest.raises(ConfigError, match="cannot write it") as raised:
        write_config(file, data)
    assert place in str(raised.value)
    assert file.read_text() == "# as it was\n"
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot write it: No such file or directory; make its folder"):
        write_config(tmp_path / "no" / "config.toml", DATA)


@UNHURRIED
@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_a_file_holds_exactly_what_was_meant_or_is_not_written(
    tmp_path_factory: pytest.TempPathFactory, data: dict[str, Any]
) -> None:
    file = tmp_path_factory.getbasetemp() / "any.toml"
    file.unlink(missing_ok=True)
    try:
        write_config(file, data)
    except ConfigError:
        assert not file.exists()
    else:
        assert tomllib.loads(file.read_text()) == data


BASE = Model(name="chat", source="org/chat", flags={"a": 1, "b": [1]}, env={"A": "1"})


def test_a_signature_is_the_same_in_every_run() -> None:
    assert signature(BASE) == "456c17cba93f05358f02959906a40410bed755bade5197fb86f5785ccbe97653"
    assert signature(dataclasses.replace(BASE, flags={"b": [1], "a": 1})) == signature(BASE)


@pytest.mark.parametrize(
    "change",
    [
        {"source": "org/other"},
        {"revision": "main"},
        {"venv": Venv()},
        {"venv": Venv(path=Path("/v"))},
        {"flags": {"a": 2, "b": [1]}},
        {"flags": {"a": True, "b": [1]}},
        {"env": {}},
        {"gpus": ()},
        {"gpus": (0,)},
        {"tensor_parallel": 2},
        {"vram": 2**30},
        {"vram": Share(0.5)},
        {"aliases": ("a",)},
        {"sleep_level": 1},
        {"limits": Limits(memory_bytes=2**30)},
        {"limits": Limits(cpu=4)},
        {"limits": Limits(pids=4096)},
        {"network": "host"},
        {"tools": "strip"},
    ],
)
def test_what_shapes_the_process_changes_the_signature(change: dict[str, Any]) -> None:
    assert signature(dataclasses.replace(BASE, **change)) != signature(BASE)


def test_what_only_the_supervisor_acts_on_does_not() -> None:
    calmer = dataclasses.replace(
        BASE,
        path="/x",
        queue=Queue(),
        idle_stop_after_s=None,
        idle_sleep_after_s=9,
        keep=True,
        start_timeout_s=1,
        max_concurrent=3,
        system_prompt="Be brief.",
        request=RequestPolicy(strip=("seed",)),
    )
    assert signature(calmer) == signature(BASE)
