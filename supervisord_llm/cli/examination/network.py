"""What stands before our ports, and whether the hub answers."""

import http.client
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Literal

from supervisord_llm.cli.diagnosis.network import Network
from supervisord_llm.cli.examination.limit import PATH, Call, NotTold, Silent, output, text
from supervisord_llm.config.model import Address

HUB = "https://huggingface.co"
HUB_S = 6.0
"""The resolver's own limits are longer."""
REFUSALS = (401, 404, 429)
"""Of a hub or a mirror that is there; 403 and 407 are those of a proxy in between."""
OFFLINE = {"1", "ON", "YES", "TRUE"}


def see_network(ports: Sequence[int], wants: Sequence[str], *, is_service: bool) -> Network:
    """`wants` are models whose weights are to be downloaded; without any the hub is not asked."""
    name, rules = _firewall()
    endpoint = os.environ.get("HF_ENDPOINT", HUB).rstrip("/")
    return Network(
        ports=tuple(ports),
        firewall=name,
        rules=rules,
        hub=endpoint if wants else "",
        wants=tuple(wants),
        is_service=is_service,
        hub_complaint=_complaint(endpoint) if wants else "",
    )


def open_ports(listen: Sequence[Address]) -> list[int]:
    """Of the addresses of [server] listen, those that not only this machine reaches."""
    return [
        address.port
        for address in listen
        if address.path is None and not address.host.startswith(("127.", "::1", "localhost"))
    ]


def _firewall() -> tuple[Literal["ufw", "firewalld", "nftables", ""], str | None]:
    """The one that is on, and its rules; None for what this user is not told."""
    try:
        status = output("ufw", "status", "verbose")
    except NotTold:
        if "ENABLED=yes" in text("/etc/ufw/ufw.conf"):
            return "ufw", None
    else:
        if "Status: active" in status:
            return "ufw", status
    if _runs_firewalld():
        try:
            return "firewalld", output("firewall-cmd", "--list-all")
        except NotTold:
            return "firewalld", None
    if shutil.which("nft", path=PATH) is None:
        return "", ""
    try:
        ruleset = output("nft", "list", "ruleset")
    except NotTold:
        return "", None
    return ("nftables" if "hook input" in ruleset else ""), ruleset


def _runs_firewalld() -> bool:
    try:
        return output("firewall-cmd", "--state").strip() == "running"
    except Silent:
        return True
    except NotTold:
        return False


def _complaint(endpoint: str) -> str:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        return Call(lambda: _ask(endpoint)).within(HUB_S, "it")
    except NotTold as why:
        return str(why)


def _ask(endpoint: str) -> str:
    """Why it cannot be had; "" where there is an answer, whatever it is."""
    try:
        with urllib.request.urlopen(f"{endpoint}/api/models?limit=1", timeout=HUB_S):  # noqa: S310 - the user's own
            return ""
    except urllib.error.HTTPError as answer:
        return "" if answer.code in REFUSALS else f"HTTP {answer.code}"
    except (OSError, http.client.HTTPException, ValueError) as problem:
        return str(getattr(problem, "reason", None) or problem)
