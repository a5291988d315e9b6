"""The documents say what the code does."""

import argparse
import re
import tomllib
from pathlib import Path

from supervisord_llm.cli.main import parser

ROOT = Path(__file__).parents[2]
CLI = (ROOT / "docs" / "cli.md").read_text()


def commands() -> dict[str, argparse.ArgumentParser]:
    (subparsers,) = (each for each in parser()._actions if isinstance(each, argparse._SubParsersAction))
    return dict(subparsers.choices)


def rows() -> dict[str, str]:
    """Command -> its row in the table."""
    return {found[1]: found[0] for found in re.finditer(r"^\| `([\w-]+)[^`]*` \|.*$", CLI, re.MULTILINE)}


def test_the_documented_commands_are_those_that_exist() -> None:
    assert set(rows()) == set(commands())


def test_each_commands_options_are_in_its_row() -> None:
    for name, command in commands().items():
        for action in command._actions:
            if action.option_strings and not {"-h", "--config"} & set(action.option_strings):
                assert f"`{action.option_strings[0]}" in rows()[name], (name, action.option_strings)


def test_help_begins_each_command_with_what_it_does() -> None:
    for name, command in commands().items():
        assert command.description, name
        assert command.description in command.format_help().replace("\n", " ")


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = (ROOT / "docs" / "dependencies.md").read_text()
    table = set(re.findall(r"^\| `([\w.-]+)` \| \S.* \| \S.* \|$", text, re.MULTILINE))
    assert table == {re.split(r"[<>=~!\[ ]", each)[0] for each in project["dependencies"]}
    for each in project["optional-dependencies"]["test"]:
        name = re.split(r"[<>=~!\[ ]", each)[0]
        assert name.startswith("types-") or f"`{name}`" in text, name
