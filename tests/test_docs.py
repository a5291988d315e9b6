"""The documentation is held to the code."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from supervisord_llm.config.load import load

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def test_the_state_diagram_is_drawn_from_the_tables_of_today() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/state_diagram.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_project_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_toml_in_the_documentation_is_toml(page: Path) -> None:
    for block in re.findall(r"```toml\n(.*?)```", page.read_text(), re.DOTALL):
        tomllib.loads(block)


def test_the_configuration_in_the_readme_is_valid(tmp_path: Path) -> None:
    blocks = re.findall(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    path = tmp_path / "config.toml"
    path.write_text("\n".join([*blocks, f'[paths]\nruntime = "{tmp_path}"\n']))
    load(path, {"WEBUI_API_KEY": "sk-1", "WIDGET_API_KEY": "sk-2", "XAI_API_KEY": "sk-3"})


def test_every_room_is_on_the_map() -> None:
    readme = (ROOT / "README.md").read_text()
    rooms = {path.parent.name for path in (ROOT / "supervisord_llm").glob("*/__init__.py")}
    assert {room for room in rooms if f"(supervisord_llm/{room})" not in readme} == set()


ROOMS = sorted(path.parent for path in (ROOT / "supervisord_llm").glob("*/**/__init__.py"))


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: str(room.relative_to(ROOT)))
def test_the_map_of_a_room_has_every_file(room: Path) -> None:
    text = ast.get_docstring(ast.parse((room / "__init__.py").read_text())) or ""
    told = set(re.findall(r"\w+(?:\.py|/)", text))
    files = {path.name for path in room.glob("*.py")} - {"__init__.py"}
    files |= {f"{path.parent.name}/" for path in room.glob("*/__init__.py")}
    assert files <= told
