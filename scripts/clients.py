"""Run the Node packages `openai`, `@anthropic-ai/sdk` and `ollama` against a daemon, and print what worked.

Without --url a daemon with a fake engine is started for it. The packages are installed into a temporary
directory by npm, which must be there. Exit code 1 if anything failed.
"""

import argparse
import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.e2e.house import House, running

HERE = Path(__file__).resolve().parent
PACKAGES = ("openai", "@anthropic-ai/sdk", "ollama")


def install(directory: Path) -> None:
    """The packages, and beside them the script that imports them."""
    command = ["npm", "install", "--no-audit", "--no-fund", "--silent", "--prefix", str(directory), *PACKAGES]
    subprocess.run(command, check=True)
    shutil.copy(HERE / "clients.mjs", directory)


def check(directory: Path, url: str, key: str, model: str) -> bool:
    """Print a row for each check; whether all of them passed."""
    command = ["node", str(directory / "clients.mjs"), url, key, model]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    for row in rows:
        print(f"{row['client']:<20} {row['check']:<24} {row['error'] or 'ok'}")
    if done.returncode != 0:
        print(done.stderr, file=sys.stderr)
    return done.returncode == 0 and bool(rows) and not any(row["error"] for row in rows)


async def check_own(directory: Path) -> bool:
    """Against a daemon of ours, whose model takes a while to start."""
    with tempfile.TemporaryDirectory(prefix="llms-") as root:
        house = House(Path(root))
        house.configure({"alpha": house.fake(load_s=3.0)}, server={"heartbeat": "500ms"})
        async with running(house):
            return await asyncio.to_thread(check, directory, house.url, "none", "alpha")


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--url", help="of a daemon that runs, without /v1")
    arguments.add_argument("--key", default="none")
    arguments.add_argument("--model", default="", help="with --url: the model to talk to")
    given = arguments.parse_args()
    missing = [name for name in ("node", "npm") if shutil.which(name) is None]
    if missing:
        print(f"cannot run the clients: {' and '.join(missing)} not found; install Node", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="llm-clients-") as name:
        directory = Path(name)
        install(directory)
        if given.url is None:
            return 0 if asyncio.run(check_own(directory)) else 1
        return 0 if check(directory, given.url, given.key, given.model) else 1


if __name__ == "__main__":
    sys.exit(main())
