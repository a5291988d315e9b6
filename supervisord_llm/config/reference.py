"""The reference page of every setting.

Renew it with `python -m supervisord_llm.config.reference > docs/configuration.md`.
"""

import json
import sys
from collections.abc import Iterator

from supervisord_llm.config.keys.root import ROOT
from supervisord_llm.config.kinds import Key, Kind, ListOf, MapOf, OneOf, Table

INTRODUCTION = """\
# Configuration

The daemon reads `/etc/llm-supervisor/config.toml`, or the file that `--config` or `$LLM_SUPERVISOR_CONFIG`
names, and then the `conf.d/*.toml` beside it in the order of their names: tables merge, and of two values for
one key the later one counts. `llm-supervisor check` tells every mistake at once, each with its file and line;
`llm-supervisor schema` prints a JSON Schema for editors.

- Sizes are `"10GiB"`, `"512MiB"`, `"24GB"` or a number of bytes; shares are `"90%"`.
- Durations are `"500ms"`, `"30s"`, `"5m"`, `"1h"`, `"7d"` or a number of seconds.
- Relative paths begin in the folder of the main file.
- Clients' keys come from the environment, from `.env` or `llm-supervisor.env` beside the main file, from
  `/etc/llm-supervisor/llm-supervisor.env`, from systemd credentials or plain files; the environment wins.
- A key that is unknown or not supported yet is an error, so nothing written here is ever ignored.

This page is made by `python -m supervisord_llm.config.reference`.
"""


def render() -> str:
    """The page, as Markdown."""
    sections = [_section(heading, table) for key in ROOT.keys for heading, table in _tables(key)]
    postponed = [f"`[{key.name}]`: {key.doc}" for key in ROOT.keys if not key.supported]
    closing = "## Not supported yet\n\n" + "\n".join(f"- {line}" for line in postponed) + "\n"
    return "\n".join([INTRODUCTION, *sections, closing])


def _tables(key: Key) -> Iterator[tuple[str, Table]]:
    match key.kind:
        case Table() as table:
            heading = f"[{key.name}]"
        case MapOf(item=Table() as table):
            heading = f"[{key.name}.NAME]"
        case _:
            return
    yield heading, table
    if key.name != "defaults":  # it has the tables of a model
        for inner in table.keys:
            of = inner.kind.item if isinstance(inner.kind, ListOf) else inner.kind
            if isinstance(of, Table):
                yield f"{heading} {inner.name}", of


def _section(heading: str, table: Table) -> str:
    if heading == "[defaults]":
        own = (
            "`source`, `command`, `path`, `aliases`, `extends`, `replicas`, `adapter_of` and those of an API "
            "elsewhere"
        )
        return f"## `[defaults]`\n\n{table.doc} All keys of `[models.NAME]` but {own}.\n"
    lines = [
        f"## `{heading}`",
        "",
        table.doc,
        "",
        "| key | write | default | meaning |",
        "| --- | --- | --- | --- |",
    ]
    for key in table.keys:
        if key.supported:
            cells = (f"`{key.name}`", _accepts(key.kind), _default(key), key.doc)
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    postponed = [f"`{key.name}`" for key in table.keys if not key.supported]
    if postponed:
        lines += ["", f"Not supported yet: {', '.join(postponed)}."]
    return "\n".join(lines) + "\n"


def _accepts(kind: Kind) -> str:
    match kind:
        case ListOf():
            return f"a list; each item {kind.item.accepts}"
        case OneOf():
            return " or ".join(_accepts(option) for option in kind.options)
        case _:
            return kind.accepts


def _default(key: Key) -> str:
    if key.required:
        return "(needed)"
    if key.default is None:
        return key.default_doc
    return f"`{json.dumps(key.default)}`"  # the defaults are of types that JSON and TOML write alike


if __name__ == "__main__":
    sys.stdout.write(render())
