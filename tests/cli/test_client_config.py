"""client-config: what each client gets to paste, with and without a daemon."""

import json
import shlex
import tomllib
from typing import Any

import pytest
import yaml

from supervisord_llm.cli.snippets import CLIENTS, Offer, Server
from tests.cli.conftest import Cli, House

URL = "http://10.0.0.5:8000/v1"
SERVER = Server(
    URL,
    "sk-1",
    (
        Offer("org/big one's", None, "text"),
        Offer("coder", 8192, "text", frozenset({"tools", "vision"})),
        Offer("vectors", 512, "embeddings"),
        Offer("rank", 512, "scores"),
    ),
)


def written(client: str) -> str:
    return CLIENTS[client].write(SERVER)


def environment(text: str) -> dict[str, str]:
    """As a shell, docker and systemd read it."""
    return dict(word.split("=", 1) for word in shlex.split(text))


def test_openai_is_an_environment() -> None:
    assert environment(written("openai")) == {"OPENAI_BASE_URL": URL, "OPENAI_API_KEY": "sk-1"}


def test_open_webui_gets_the_default_model_and_the_embeddings() -> None:
    found = environment(written("openwebui"))
    assert found["OPENAI_API_BASE_URL"] == found["RAG_OPENAI_API_BASE_URL"] == URL
    assert found["DEFAULT_MODELS"] == "org/big one's"
    assert found["RAG_EMBEDDING_MODEL"] == "vectors"


def test_continue_gets_every_model_with_its_role() -> None:
    config = yaml.safe_load(written("continue"))
    assert {"name", "version", "schema"} < set(config)
    models = {one["model"]: one for one in config["models"]}
    assert [one["roles"] for one in config["models"]][1:] == [
        ["chat", "edit", "apply"],
        ["embed"],
        ["rerank"],
    ]
    assert models["coder"]["capabilities"] == ["tool_use", "image_input"]
    assert models["coder"]["defaultCompletionOptions"] == {"contextLength": 8192, "maxTokens": 2048}
    assert "defaultCompletionOptions" not in models["org/big one's"]
    assert {one["provider"] for one in config["models"]} == {"vllm"}
    assert {one["apiBase"] for one in config["models"]} == {URL}


def test_opencode_gets_limits_where_they_are_known() -> None:
    config = json.loads(written("opencode"))
    models = config["provider"]["llm-supervisor"]["models"]
    assert config["model"] == "llm-supervisor/org/big one's"
    assert models["coder"]["limit"] == {"context": 8192, "output": 2048}
    assert "limit" not in models["org/big one's"]
    assert set(models) == {"org/big one's", "coder"}, "what does not talk is of no use there"


def test_n8n_gets_a_credential_whose_url_has_no_slash_at_its_end() -> None:
    (credential,) = json.loads(written("n8n"))
    assert credential["type"] == "openAiApi"
    assert credential["data"] == {"apiKey": "sk-1", "url": URL, "header": False}


async def asked(cli: Cli, client: str, *more: str) -> Any:
    done = await cli("client-config", client, "--json", *more)
    assert done.code == 0, done.err
    return json.loads(done.out)


async def test_without_a_daemon_the_configuration_tells(cli: Cli) -> None:
    cli.config.write_text(
        cli.config.read_text().replace("127.0.0.1:0", "127.0.0.1:8123")
        + 'flags = { max-model-len = "4k" }\n[models.late]\nsource = "org/late"\n'
    )
    told = await asked(cli, "opencode")
    assert (told["base_url"], told["api_key"]) == ("http://127.0.0.1:8123/v1", "none")
    assert (told["model"], told["max_model_len"]) == ("coder", None)
    assert any("only programs on this machine" in note for note in told["notes"])
    models = json.loads(told["text"])["provider"]["llm-supervisor"]["models"]
    assert models["chat"]["limit"]["context"] == 4000
    assert "coder3b" in models


@pytest.mark.parametrize(
    ("default", "told"),
    [
        ("coder", "the context of coder is known once its weights are here: `pull` gets them"),
        ("far", "the context of far is not known: set `max_model_len` in [models.far]"),
        ("all", "the context of all is not known: set `max_model_len` in [models.far]"),
        ("p/x", "the context of p/x is not known: where it runs, nothing tells"),
    ],
)
async def test_it_is_said_how_an_unknown_context_becomes_known(cli: Cli, default: str, told: str) -> None:
    text = cli.config.read_text().replace("[server]\n", f'[server]\ndefault_model = "{default}"\n', 1)
    more = (
        '[models.far]\nengine = "remote"\nurl = "https://api.example.org/v1"\n[peers.p]\nurl = "http://p"\n'
    )
    cli.config.write_text(f'{text}\n{more}[routes.all]\nmembers = ["far", "p/x"]\n')
    assert told in (await asked(cli, "openai"))["notes"]


async def test_a_daemon_is_asked_what_it_serves(cli: Cli, house: House) -> None:
    with cli.config.open("a") as file:
        file.write('[models.unread]\nsource = "org/unread"\n')
    text = (await asked(cli, "continue"))["text"]
    assert [one["model"] for one in yaml.safe_load(text)["models"]] == ["coder", "coder3b", "chat"]


@pytest.mark.parametrize(
    ("listen", "more", "url"),
    [
        ('["[::1]:81"]', (), "http://[::1]:81/v1"),
        ('["unix:/run/x.sock", "localhost:82"]', (), "http://localhost:82/v1"),
        ('["unix:/run/x.sock"]', ("--url", "https://llm.example.org/v1/"), "https://llm.example.org/v1"),
        ('["0.0.0.0:83"]', ("--url", "http://llm"), "http://llm/v1"),
    ],
)
async def test_the_address_is_that_which_clients_use(
    cli: Cli, listen: str, more: tuple[str, ...], url: str
) -> None:
    cli.config.write_text(cli.config.read_text().replace('["127.0.0.1:0"]', listen))
    assert (await asked(cli, "openai", *more))["base_url"] == url


async def test_a_wildcard_becomes_an_address_that_others_reach(cli: Cli) -> None:
    cli.config.write_text(cli.config.read_text().replace("127.0.0.1:0", "0.0.0.0:84"))
    url = (await asked(cli, "openai"))["base_url"]
    assert url.startswith("http://")
    assert url.endswith(":84/v1")
    assert "0.0.0.0" not in url


async def test_a_key_is_asked_for_where_one_is_needed(cli: Cli) -> None:
    text = cli.config.read_text()
    assert tomllib.loads(text)["auth"] == {"required": False}
    digest = "0" * 64
    cli.config.write_text(
        text.replace("required = false", f'required = true\n[clients.me]\nkey_sha256 = "{digest}"')
    )
    done = await cli("client-config", "n8n")
    assert json.loads(done.out)[0]["data"]["apiKey"] == "YOUR-KEY"
    assert "keys new n8n" in done.err


async def test_what_cannot_be_told_is_said(cli: Cli) -> None:
    assert (await cli("client-config", "nobody")).code == 2
    cli.config.write_text(cli.config.read_text().replace('["127.0.0.1:0"]', '["unix:/run/x.sock"]'))
    done = await cli("client-config", "openai")
    assert (done.code, "give --url" in done.err) == (1, True)
