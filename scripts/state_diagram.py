#!/usr/bin/env python3
"""Draw the states of an engine from the tables that make them, into README.md.

scripts/state_diagram.py            write the picture
scripts/state_diagram.py --check    exit 1 if README.md shows another one
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from supervisord_llm.core.state import HAS_PROCESS, MEANING, TRANSITIONS, State  # noqa: E402

BEGIN, END = "<!-- states: drawn by scripts/state_diagram.py -->", "<!-- /states -->"


def diagram() -> str:
    """The states and their moves as a Mermaid diagram, and what each state means as a table."""
    moves = [
        f"    {source} --> {target}: {why}"
        for source, row in TRANSITIONS.items()
        for target, why in row.items()
    ]
    rows = [f"| `{state}` | {MEANING[state]} | {'yes' if state in HAS_PROCESS else ''} |" for state in State]
    return "\n".join(
        [
            "```mermaid",
            "stateDiagram-v2",
            f"    [*] --> {State.STOPPED}",
            *moves,
            "```",
            "",
            "| state | meaning | holds VRAM |",
            "| --- | --- | --- |",
            *rows,
        ]
    )


def with_diagram(readme: str) -> str:
    """`readme` with the picture between its marks brought up to date."""
    head, _, rest = readme.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{diagram()}\n{END}{tail}"


def main() -> int:
    path = ROOT / "README.md"
    before = path.read_text()
    after = with_diagram(before)
    if "--check" in sys.argv[1:]:
        if before != after:
            print("cannot accept README.md: its state diagram is stale; run scripts/state_diagram.py")
        return int(before != after)
    path.write_text(after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
