"""The ways in and out: the firewall before our ports, and the hub that weights come from."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from supervisord_llm.cli.diagnosis.finding import Finding

PORT = re.compile(r"(\d+)(?:[:-](\d+))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """What firewalls and the hub say."""

    ports: tuple[int, ...] = ()
    """Those that other machines are to reach."""
    firewall: Literal["ufw", "firewalld", "nftables", ""] = ""
    """The one that is on, as far as can be seen; "" where none is."""
    rules: str | None = ""
    """What it prints of itself; None where this user may not know."""
    hub: str = ""
    """Where weights would come from; "" where none are missing."""
    wants: tuple[str, ...] = ()
    """Models whose weights are to be downloaded."""
    is_service: bool = False
    """Whether units download, with an environment of their own."""
    hub_complaint: str = ""
    """Why the hub cannot be asked; "" where it answered."""


def findings(network: Network) -> Iterator[Finding]:
    if network.ports:
        yield from _firewall(network)
    if network.hub:
        yield _hub(network)


def _firewall(network: Network) -> Iterator[Finding]:
    name = network.firewall
    listed = ", ".join(map(str, network.ports))
    if not name:
        seen = "" if network.rules is not None else " (what nftables does only root sees)"
        yield Finding("ok", "firewall", f"neither ufw nor firewalld is on{seen}")
        return
    if network.rules is None:
        text = f"{name} is on, and does not tell this user whether it lets in port {listed}"
        yield Finding("warning", "firewall", text, "`sudo llm-supervisor doctor`")
        return
    closed = [port for port in network.ports if not _lets_in(name, network.rules, port)]
    if not closed:
        yield Finding("ok", "firewall", f"{name} lets in port {listed}")
    for port in closed:
        mend = {
            "ufw": f"`sudo ufw allow {port}/tcp`",
            "firewalld": f"`sudo firewall-cmd --permanent --add-port={port}/tcp; sudo firewall-cmd --reload`",
            "nftables": f"add `tcp dport {port} accept` to its input chain (`sudo nft list ruleset`)",
        }[name]
        text = f"{name} does not let other machines in to port {port}"
        if name == "nftables":
            text = f"nftables drops what no rule accepts, and none names port {port}"
        yield Finding("warning", "firewall", text, mend)


def _lets_in(firewall: str, rules: str, port: int) -> bool:
    if firewall == "ufw":
        return ufw_lets_in(rules, port)
    if firewall == "firewalld":
        return firewalld_lets_in(rules, port)
    return nftables_lets_in(rules, port)


def ufw_lets_in(status: str, port: int) -> bool:
    """By what `ufw status verbose` prints; rules by the name of an application are not known."""
    if re.search(r"^Default: allow \(incoming\)", status, re.MULTILINE):
        return True
    for line in status.splitlines():
        found = re.match(r"(\S+)(?: \(v6\))?(?: on \S+)?\s+(?:ALLOW|LIMIT)(?! OUT)", line)
        if found and (found[1] == "Anywhere" or _names(found[1].removesuffix("/tcp").split(","), port)):
            return True
    return False


def firewalld_lets_in(zone: str, port: int) -> bool:
    """By what `firewall-cmd --list-all` prints of the default zone."""
    if re.search(r"^\s*target: ACCEPT$", zone, re.MULTILINE):
        return True
    ports = re.search(r"^\s*ports: (.*)$", zone, re.MULTILINE)
    tcp = [each.removesuffix("/tcp") for each in (ports[1] if ports else "").split() if each.endswith("/tcp")]
    return _names(tcp, port) or f'port port="{port}" protocol="tcp" accept' in zone


def nftables_lets_in(ruleset: str, port: int) -> bool:
    """By what `nft list ruleset` prints: closed where an input chain drops and no rule accepts it."""
    if not re.search(r"hook input [^;]*;\s*policy drop", ruleset):
        return True
    for line in ruleset.splitlines():
        found = re.search(r"dport (\{[^}]*\}|\S+)", line)
        if found and "accept" in line and _names(re.split(r"[{},\s]+", found[1]), port):
            return True
    return False


def _names(words: Sequence[str], port: int) -> bool:
    """Whether one of the words is the port, or a range that has it."""
    for word in words:
        found = PORT.fullmatch(word)
        if found and int(found[1]) <= port <= int(found[2] or found[1]):
            return True
    return False


def _hub(network: Network) -> Finding:
    wants = ", ".join(network.wants)
    if not network.hub_complaint:
        return Finding("ok", "hub", f"{network.hub} answers; the weights of {wants} are yet to be downloaded")
    text = f"{network.hub} does not answer ({network.hub_complaint}), and the weights of {wants} are not here"
    if network.is_service:
        mend = (
            "if it is reached by what /etc/llm-supervisor/fetch.env says, all is well; else mend the network"
        )
        return Finding("warning", "hub", text, mend)
    mend = "check network and proxy, set HF_ENDPOINT to a mirror, or set `source` to a directory of weights"
    return Finding("problem", "hub", text, mend)
