"""The command of a server that is not vLLM: its words, its environment, its program."""

import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisord_llm.config.kinds import Unreadable
from supervisord_llm.config.template import PLACEHOLDERS, fill, placeholders, read_word
from supervisord_llm.engines.command import Place, shell_line
from supervisord_llm.engines.template import find_program, takes_port, template_command
from supervisord_llm.errors import ProvisionError
from tests.engines.conftest import make_model
from tests.engines.test_command import BASE, PLACE

AT: dict[str, Any] = {**PLACE, "executable": Path("/opt/bin/llama-server"), "port": 30123}


def model(*words: str, **fields: Any) -> Any:
    return make_model(engine="command", command=("llama-server", *words), **fields)


def test_every_placeholder_has_its_value() -> None:
    served = model("--port={port}", "-m", "/m/{model}.gguf", "--gpus", "{gpus}", "--uds", "{socket}")
    command = template_command(served, Place(**AT, gpus=(0, 2)), BASE)
    assert shlex.join(command.argv) == (
        "/opt/bin/llama-server --port=30123 -m /m/alpha.gguf --gpus 0,2 --uds /r/alpha.sock"
    )
    assert command.env["CUDA_VISIBLE_DEVICES"] == "0,2"


def test_it_sees_no_more_of_our_environment_than_vllm_does() -> None:
    command = template_command(model("{port}", env={"MINE": "1"}), Place(**AT, isolated=True), BASE)
    assert command.env["PATH"] == "/usr/bin"
    assert command.env["LLM_SUPERVISOR_LAUNCH"] == "m1"
    assert (command.env["HF_HUB_OFFLINE"], command.env["MINE"]) == ("1", "1")
    assert command.env["CUDA_VISIBLE_DEVICES"] == ""
    assert command.env.keys() & {"PYTHONPATH", "HF_TOKEN", "NOTIFY_SOCKET"} == set()


def test_one_with_the_network_may_download() -> None:
    assert "HF_HUB_OFFLINE" not in template_command(model("{port}"), Place(**AT), BASE).env


def test_its_line_for_people_has_no_secrets() -> None:
    served = model("-p", "{port}", "--api-key", "s3cret", "-e", "API_KEY=s3cret", "a=b", "--hf-token=s3cret")
    line = shell_line(template_command(served, Place(**AT), BASE))
    assert "s3cret" not in line
    assert line.endswith("-p 30123 --api-key *** -e API_KEY=*** a=b --hf-token=***")


def test_whether_it_takes_a_port() -> None:
    assert takes_port(model("--port", "{port}"))
    assert not takes_port(model("--host", "{socket}", "--name", "{{port}}"))
    assert not takes_port(make_model())


# ---- placeholders ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "filled"),
    [
        ("", ""),
        ("{port}", "7"),
        ("127.0.0.1:{port}/{model}", "127.0.0.1:7/m"),
        ("{{port}}", "{port}"),
        ('{{"port": {port}}}', '{"port": 7}'),
        ("{gpus}{gpus}", "0,10,1"),
    ],
)
def test_a_word_filled_in(word: str, filled: str) -> None:
    assert fill(read_word(word), {"port": "7", "socket": "/s", "model": "m", "gpus": "0,1"}) == filled


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("{foo}", "{foo} is no placeholder"),
        ("{ports}", "{ports} is no placeholder"),
        ("{port!r}", "a brace that is no placeholder"),
        ("{port:>8}", "a brace that is no placeholder"),
        ("{}", "a brace that is no placeholder"),
        ("{port", "a brace that is no placeholder"),
        ("port}", "a brace that is no placeholder"),
        ('{"key": "s3cret"}', "a brace that is no placeholder"),
        ("{model.flags}", "a brace that is no placeholder"),
    ],
)
def test_a_word_that_is_refused(word: str, why: str) -> None:
    with pytest.raises(Unreadable, match=why) as refused:
        read_word(word)
    assert "s3cret" not in f"{refused.value}{refused.value.way_out}"
    assert "{" in refused.value.way_out or "did you mean" in refused.value.way_out


@given(st.text(st.characters(exclude_characters="{}\0")), st.sampled_from(PLACEHOLDERS))
def test_all_but_braces_stays_as_it_is(text: str, name: str) -> None:
    word = f"{text}{{{name}}}{text}"
    assert placeholders([read_word(word)]) == {name}
    assert fill(word, dict.fromkeys(PLACEHOLDERS, "{port}")) == f"{text}{{port}}{text}"
    assert fill(read_word(f"{{{{{text}}}}}"), {}) == f"{{{text}}}"


# ---- the program -------------------------------------------------------------------------------------------


@pytest.fixture
def program(tmp_path: Path) -> Path:
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "llama-server"
    program.touch(mode=0o755)
    return program


def test_a_program_is_looked_up_where_the_model_says(program: Path) -> None:
    folder = str(program.parent)
    assert find_program(model(), {"PATH": folder}) == program
    assert find_program(model(env={"PATH": folder}), {"PATH": "/nowhere"}) == program
    assert find_program(make_model(command=(str(program),)), {}) == program


def test_what_is_wrong_with_a_program_is_said(program: Path) -> None:
    with pytest.raises(ProvisionError, match="cannot find the program llama-server in /nowhere: install it"):
        find_program(model(), {"PATH": "/nowhere"})
    with pytest.raises(ProvisionError, match="cannot run /nowhere/x: there is no such file; correct"):
        find_program(make_model(command=("/nowhere/x",)), {})
    program.chmod(0o644)
    with pytest.raises(ProvisionError, match=rf"cannot run {program}: it may not be run"):
        find_program(make_model(command=(str(program),)), {})
