"""Run real clients against a daemon with a fake engine, and print what worked.

    clients              the Node packages `openai`, `@anthropic-ai/sdk` and `ollama`
    clients open-webui   Open WebUI, driven over its own HTTP API (3 GB; needs Python 3.11)
    clients n8n          n8n, driven by its command line (2.5 GB)

They are installed into a temporary directory, or into --directory, which keeps them for the next run. With
--url the Node packages talk to a daemon that runs already. Exit code 1 if anything failed.
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

import n8n
import open_webui

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


async def check_own(directory: Path, root: Path) -> bool:
    """Against a daemon of ours, whose model takes a while to start."""
    house = House(root)
    house.configure({"alpha": house.fake(load_s=3.0)}, server={"heartbeat": "500ms"})
    async with running(house):
        return await asyncio.to_thread(check, directory, house.url, "none", "alpha")


NEEDED = {"node": ("node", "npm"), "open-webui": (), "n8n": ("npm",)}
INSTALL = {"node": install, "open-webui": open_webui.install, "n8n": n8n.install}
CHECK = {"node": check_own, "open-webui": open_webui.check, "n8n": n8n.check}


def main() -> int:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("client", nargs="?", choices=INSTALL, default="node")
    arguments.add_argument("--directory", type=Path, help="where they are installed, if not there yet")
    arguments.add_argument("--url", help="of a daemon that runs, without /v1; for node")
    arguments.add_argument("--key", default="none", help="with --url")
    arguments.add_argument("--model", default="", help="with --url: the model to talk to")
    given = arguments.parse_args()
    if given.url is not None and given.client != "node":
        arguments.error("--url is for node")
    missing = [name for name in NEEDED[given.client] if shutil.which(name) is None]
    if missing:
        print(f"cannot run the clients: {' and '.join(missing)} not found; install Node", file=sys.stderr)
        return 1
    with (
        tempfile.TemporaryDirectory(prefix="llm-clients-") as temporary,
        tempfile.TemporaryDirectory(prefix="llms-") as root,
    ):
        directory = (given.directory or Path(temporary)).resolve() / given.client
        directory.mkdir(parents=True, exist_ok=True)
        INSTALL[given.client](directory)
        if given.url is not None:
            return 0 if check(directory, given.url, given.key, given.model) else 1
        return 0 if asyncio.run(CHECK[given.client](directory, Path(root))) else 1


if __name__ == "__main__":
    sys.exit(main())
