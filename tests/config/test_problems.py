"""What is wrong with a configuration, told in one line each: TOML snippet -> the problem."""

from pathlib import Path

import pytest

from tests.config.conftest import Problems

MISTAKES = Path(__file__).with_name("mistakes.txt").read_text().split("\n=== ")[1:]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.partition("\n")[0])
def test_a_mistake_is_one_line_with_place_and_way_out(
    mistake: str, problems: Problems, tmp_path: Path
) -> None:
    text, _, expected = mistake.partition("\n")[2].partition("\n--> ")
    found = [str(problem) for problem in problems(text)]
    assert len(found) == 1, found
    assert found[0].startswith(f"{tmp_path / 'config.toml'}:{expected.strip()}")


def test_what_is_wrong_beside_a_wrong_name_or_value_is_told_as_well(problems: Problems) -> None:
    text = """\
[models.a]
source = "org/a"
[routes.r]
members = ["a"]
classifier = { model = "zz", labels = { x = "yy" }, timeout = 0 }
[routes.s]
members = ["a"]
classifier = { model = "zz" }
[peers."p/q"]
modls = []
"""
    told = [(problem.path, problem.found.partition(":")[0]) for problem in problems(text)]
    assert told == [
        ("routes.r.classifier.timeout", "cannot read 0"),
        ("routes.r.classifier", "cannot classify without fallback"),
        ("routes.r.classifier.labels.x", 'cannot find a model or route named "yy"'),
        ("routes.r.classifier.model", 'cannot find a model named "zz"'),
        ("routes.s.classifier", "cannot classify without labels"),
        ("routes.s.classifier", "cannot classify without fallback"),
        ("routes.s.classifier.model", 'cannot find a model named "zz"'),
        ('peers."p/q"', 'cannot use the peer "p/q"'),
        ('peers."p/q"', "cannot tell where this peer is"),
        ('peers."p/q".modls', 'cannot use the unknown key "modls"'),
    ]


def test_every_problem_is_told_at_once_in_the_order_of_the_lines(problems: Problems) -> None:
    text = """\
[server]
listen = ["nowhere"]
preload = ["ghost"]
tls = {}
[models.chat]
source = "org/chat"
vrm = 1
venv = "ghost"
[clients.a]
key_env = "UNSET"
"""
    found = problems(text)
    assert [(problem.line, problem.path) for problem in found] == [
        (2, "server.listen[0]"),
        (3, "server.preload[0]"),
        (4, "server.tls"),
        (7, "models.chat.vrm"),
        (8, "models.chat.venv"),
        (10, "clients.a.key_env"),
    ]


def test_one_mistake_does_not_bring_forth_others(problems: Problems) -> None:
    """A model or alias that is wrong in itself is still known, and ranks are not counted on guessed GPUs."""
    text = """\
[server]
default_model = "bad name"
preload = ["nick"]
[models."bad name"]
source = "a"
aliases = ["nick"]
[models.b]
source = "b"
gpus = ["0"]
tensor_parallel = 2
"""
    assert [problem.path for problem in problems(text)] == ['models."bad name"', "models.b.gpus[0]"]


def test_what_a_model_inherits_is_told_once_where_it_was_written(problems: Problems) -> None:
    models = '[models.a]\nsource = "a"\n[models.b]\nsource = "b"\n'
    found = problems('[defaults]\nflags = { port = 1 }\nvenv = "ghost"\n' + models)
    assert [(problem.line, problem.path) for problem in found] == [
        (2, "defaults.flags.port"),
        (3, "defaults.venv"),
    ]


def test_no_message_holds_a_secret(problems: Problems) -> None:
    text = """\
[venvs.a]
requirements = ["x"]
index_url = "https://u:hunter2@index example"
[clients.a]
key_sha256 = "hunter2"
key = "hunter2"
[clients.b]
key_env = "hunter2-x"
[models.a]
source = "a"
env = { CUDA_DEVICE_ORDER = "hunter2" }
flags = { api-key = "hunter2", token = [2020-01-01, "hunter2"] }
key_env = "hunter2"
"""
    found = problems(text)
    assert len(found) == 8
    assert "hunter2" not in " ".join(map(str, found))


def test_a_message_cuts_a_long_value(problems: Problems) -> None:
    (found,) = problems(f'[log]\nformat = "{"x" * 500}"')
    assert len(str(found)) < 250
