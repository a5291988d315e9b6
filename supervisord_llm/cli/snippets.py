"""Configurations of clients, ready to paste, as those clients read them. Pure."""

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass

OUTPUT_SHARE = 4
"""One part in so many of the context may be answer, for clients that ask for a limit of it."""


@dataclass(frozen=True, slots=True)
class Offer:
    """One model as the list of models tells of it."""

    name: str
    max_model_len: int | None
    task: str
    """What it gives: text, embeddings or scores."""
    words: frozenset[str] = frozenset()
    """Its tags: tools, vision, …"""

    @property
    def most_output(self) -> int | None:
        """A limit of its answers that leaves room for what is asked."""
        return None if self.max_model_len is None else max(1, self.max_model_len // OUTPUT_SHARE)


@dataclass(frozen=True, slots=True)
class Server:
    """Where the API is and what it has: the default model first."""

    base_url: str
    """With /v1 and no slash at its end."""
    key: str
    offers: tuple[Offer, ...]

    def giving(self, task: str) -> list[Offer]:
        """The models that give it."""
        return [offer for offer in self.offers if offer.task == task]

    @property
    def chat(self) -> Offer:
        """The model to begin with."""
        return next(iter(self.giving("text")), self.offers[0])


def openai(server: Server) -> str:
    """The environment of whatever is made with one of OpenAI's SDKs."""
    return _environment({"OPENAI_BASE_URL": server.base_url, "OPENAI_API_KEY": server.key})


def openwebui(server: Server) -> str:
    """The environment of Open WebUI."""
    variables = {
        "ENABLE_OLLAMA_API": "false",
        "OPENAI_API_BASE_URL": server.base_url,
        "OPENAI_API_KEY": server.key,
        "DEFAULT_MODELS": server.chat.name,
    }
    for offer in server.giving("embeddings")[:1]:
        variables |= {
            "RAG_EMBEDDING_ENGINE": "openai",
            "RAG_EMBEDDING_MODEL": offer.name,
            "RAG_OPENAI_API_BASE_URL": server.base_url,
            "RAG_OPENAI_API_KEY": server.key,
        }
    return _environment(variables)


def continue_dev(server: Server) -> str:
    """Continue's config.yaml, by hand: a JSON string is one of YAML."""
    lines = ["name: llm-supervisor", "version: 1.0.0", "schema: v1", "models:"]
    roles = {"text": "chat, edit, apply", "embeddings": "embed", "scores": "rerank"}
    for offer in server.offers:
        lines += [
            f"  - name: {json.dumps(offer.name)}",
            "    provider: vllm",
            f"    model: {json.dumps(offer.name)}",
            f"    apiBase: {json.dumps(server.base_url)}",
            f"    apiKey: {json.dumps(server.key)}",
            f"    roles: [{roles[offer.task]}]",
        ]
        if offer.task != "text":
            continue
        names = {"tools": "tool_use", "vision": "image_input"}
        if found := [name for word, name in names.items() if word in offer.words]:
            lines.append(f"    capabilities: [{', '.join(found)}]")
        if offer.max_model_len is not None:
            lines += [
                "    defaultCompletionOptions:",
                f"      contextLength: {offer.max_model_len}",
                f"      maxTokens: {offer.most_output}",
            ]
    return "\n".join(lines)


def opencode(server: Server) -> str:
    """opencode.json. Without a limit OpenCode asks for 32000 tokens, which a small context refuses."""
    models: dict[str, object] = {}
    for offer in server.giving("text"):
        models[offer.name] = {"name": offer.name}
        if offer.max_model_len is not None:
            limit = {"context": offer.max_model_len, "output": offer.most_output}
            models[offer.name] = {"name": offer.name, "limit": limit}
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "llm-supervisor",
        "options": {"baseURL": server.base_url, "apiKey": server.key},
        "models": models,
    }
    config = {
        "$schema": "https://opencode.ai/config.json",
        "provider": {"llm-supervisor": provider},
        "model": f"llm-supervisor/{server.chat.name}",
    }
    return json.dumps(config, indent=2, ensure_ascii=False)


def n8n(server: Server) -> str:
    """A credential, for `n8n import:credentials`; its fields are those of the form."""
    credential = {
        "id": "llmSupervisor001",
        "name": "llm-supervisor",
        "type": "openAiApi",
        "data": {"apiKey": server.key, "url": server.base_url, "header": False},
    }
    return json.dumps([credential], indent=2, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Client:
    """One client: its configuration, and what to do with it."""

    write: Callable[[Server], str]
    where: str
    more: str = ""


CLIENTS: Mapping[str, Client] = {
    "openwebui": Client(
        openwebui,
        "the environment of Open WebUI at its first start; later, enter URL and key under Admin Panel > "
        "Settings > Connections",
        "with `Provider: llama.cpp` there, Open WebUI shows which models are loaded, and loads and unloads "
        "them if the key is that of a client with `admin = true`",
    ),
    "continue": Client(continue_dev, "~/.continue/config.yaml"),
    "n8n": Client(
        n8n,
        "a file for `n8n import:credentials --input=FILE`, or a credential OpenAI, as API Key and Base URL",
        'in the node "OpenAI Chat Model" choose the model by its id; the nodes "OpenAI" and "HTTP Request" '
        "give up after 300 s, so preload a model that takes longer to start",
    ),
    "opencode": Client(opencode, "opencode.json in the project, or ~/.config/opencode/opencode.json"),
    "openai": Client(openai, "the environment of your program", "the SDKs read both variables by themselves"),
}


def _environment(variables: Mapping[str, str]) -> str:
    return "\n".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
