"""client-config: a client's configuration, from the daemon that runs, else from the configuration."""

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from supervisord_llm.cli.client import Unreachable
from supervisord_llm.cli.command import DONE, Commands
from supervisord_llm.cli.locate import daemon_of
from supervisord_llm.cli.snippets import CLIENTS, Offer, Server
from supervisord_llm.errors import SupervisorError

if TYPE_CHECKING:
    from supervisord_llm.config.model import Address, Config

KEY = "YOUR-KEY"
NO_KEY = "none"
"""Where no key is needed: clients want to send one all the same."""


def register(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add(
        "client-config",
        _client_config,
        "print the configuration of a client, ready to paste",
        json=True,
        details=(
            "The configuration goes to stdout and what to do with it to stderr:\n"
            "  llm-supervisor client-config opencode > opencode.json"
        ),
    )
    parser.add_argument("client", choices=tuple(CLIENTS), help=", ".join(CLIENTS), metavar="CLIENT")
    parser.add_argument("--url", metavar="URL", help="where clients reach the server, if not as it listens")


def _client_config(args: argparse.Namespace) -> int:
    from supervisord_llm.config.load import load

    config = load(args.config, keys=False)
    url, notes = _url(args.url, config)
    server = Server(f"{url}/v1", KEY if config.auth_required else NO_KEY, _offers(args, config))
    client = CLIENTS[args.client]
    notes = [f"put it into {client.where}", *([client.more] if client.more else []), *notes]
    if config.auth_required:
        notes.append(f"{KEY} is a key of yours: `llm-supervisor keys new {args.client}` makes one")
    if server.chat.max_model_len is None:
        notes.append(_unknown_context(config, server.chat.name))
    text = client.write(server)
    if args.json:
        told = {"client": args.client, "base_url": server.base_url, "api_key": server.key}
        told |= {"model": server.chat.name, "max_model_len": server.chat.max_model_len}
        print(json.dumps(told | {"text": text, "notes": notes}, indent=2))
    else:
        print(text)
        print(f"\n# the model to begin with: {server.chat.name}", file=sys.stderr)
        print(*(f"# {note}" for note in notes), sep="\n", file=sys.stderr)
    return DONE


def _offers(args: argparse.Namespace, config: "Config") -> tuple[Offer, ...]:
    """What the list of models says; without a daemon, what it would say."""
    try:
        listed = daemon_of(args.config).models()
    except Unreachable:
        listed = _list(config)
    offers = tuple(
        Offer(
            entry["id"],
            entry["max_model_len"],
            entry["architecture"]["output_modalities"][0],
            frozenset(tag["name"] for tag in entry["tags"]),
        )
        for entry in listed["data"]
    )
    if not offers:
        raise SupervisorError("cannot configure a client: there is no model; add one to the configuration")
    return offers


def _unknown_context(config: "Config", name: str) -> str:
    """What helps where the context of a model, or of all members of a route, is not known."""
    route = config.routes.get(config.names.get(name, name))
    names = [config.names.get(name, name)] if route is None else route.members
    models = [config.models[each] for each in names if each in config.models]
    if any(model.engine == "vllm" for model in models):
        return f"the context of {name} is known once its weights are here: `pull` gets them"
    ours = next((model.name for model in models if not model.peer), None)
    way_out = f"set `max_model_len` in [models.{ours}]" if ours else "where it runs, nothing tells"
    return f"the context of {name} is not known: {way_out}"


def _list(config: "Config") -> Any:
    import os

    from supervisord_llm.core.fleet import Fleet
    from supervisord_llm.gateway.api.catalog import Catalog
    from supervisord_llm.gateway.api.openai import models
    from supervisord_llm.gateway.ports import Facts
    from supervisord_llm.gateway.settings import settings
    from supervisord_llm.gateway.target import Listing
    from supervisord_llm.provision.weights import Weights

    weights, found = Weights(config.paths, os.environ), settings(config)
    facts = Facts(
        context_length=lambda name: weights.context_length(config.models[config.engine_of(name)]),
        card=lambda name: weights.card(config.models[config.engine_of(name)]),
        tool_parser=lambda name: "",
    )
    catalog = Catalog(found, found.control, Fleet(), created=0, facts=facts)
    return models(Listing(None, None), catalog)


def _url(given: str | None, config: "Config") -> tuple[str, list[str]]:
    """Where clients reach the server, without /v1, and what is to be said of that."""
    if given is not None:
        return given.rstrip("/").removesuffix("/v1"), []
    address = next((each for each in config.server.listen if each.path is None), None)
    if address is None:
        raise SupervisorError("cannot tell where clients reach the server: it listens on no port; give --url")
    scheme = "http" if config.server.tls is None else "https"
    host, is_local = _host(address)
    note = f"only programs on this machine reach {address}: see server.listen"
    return f"{scheme}://{host}:{address.port}", [note] if is_local else []


def _host(address: "Address") -> tuple[str, bool]:
    """The host by which others reach an address, as in a URL, and whether only this machine does."""
    import ipaddress

    try:
        found = ipaddress.ip_address(address.host)
    except ValueError:
        return address.host or _lan_address(), address.host == "localhost"
    if found.is_unspecified:
        return _lan_address(), False
    return f"[{found}]" if found.version == 6 else str(found), found.is_loopback


def _lan_address() -> str:
    """This machine's address on the way to the default gateway, else its name. Nothing is sent."""
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # an address for documentation: nobody has it
        except OSError:
            return socket.gethostname()
        host: str = probe.getsockname()[0]
        return host
