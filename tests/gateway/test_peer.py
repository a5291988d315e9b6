"""Who is the client: a table of honest proxies and of liars."""

import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from supervisord_llm.config.keys.doors import read_network
from supervisord_llm.gateway.doors.address import client_address, peer_address

LAN = ("127.0.0.1", "10.0.0.0/8", "fd00::/8")

CASES: dict[str, tuple[tuple[str, ...], str, list[str], str]] = {
    "nobody is trusted": ((), "127.0.0.1", ["6.6.6.6"], "127.0.0.1"),
    "no header": (LAN, "127.0.0.1", [], "127.0.0.1"),
    "one proxy": (LAN, "127.0.0.1", ["203.0.113.7"], "203.0.113.7"),
    "two proxies": (LAN, "127.0.0.1", ["203.0.113.7, 10.1.2.3"], "203.0.113.7"),
    "two headers": (LAN, "127.0.0.1", ["203.0.113.7", "10.1.2.3"], "203.0.113.7"),
    "a stranger's claim": (LAN, "192.168.1.5", ["203.0.113.7"], "192.168.1.5"),
    "a claim through a proxy": (LAN, "127.0.0.1", ["1.1.1.1, 203.0.113.7"], "203.0.113.7"),
    "a claim to be a proxy": (LAN, "127.0.0.1", ["10.0.0.1, 203.0.113.7, 10.9.9.9"], "203.0.113.7"),
    "all are proxies": (LAN, "127.0.0.1", ["10.0.0.1, 10.0.0.2"], "10.0.0.1"),
    "nonsense": (LAN, "127.0.0.1", ["<script>"], "127.0.0.1"),
    "nonsense behind a proxy": (LAN, "127.0.0.1", ["6.6.6.6, unknown, 10.0.0.2"], "10.0.0.2"),
    "empty entries": (LAN, "127.0.0.1", [" , 203.0.113.7,, "], "203.0.113.7"),
    "with a port": (LAN, "127.0.0.1", ["203.0.113.7:4711"], "203.0.113.7"),
    "IPv6": (LAN, "fd00::1", ["2001:DB8::0:1"], "2001:db8::1"),
    "IPv6 with a port": (LAN, "fd00::1", ["[2001:db8::1]:443"], "2001:db8::1"),
    "IPv4 in IPv6": (LAN, "::ffff:127.0.0.1", ["::ffff:203.0.113.7"], "203.0.113.7"),
    "an IPv4 peer in IPv6": ((), "::ffff:203.0.113.7", [], "203.0.113.7"),
    "a unix socket": (LAN, "", ["203.0.113.7"], "unix"),
    "a trusted unix socket": (("unix",), "", ["203.0.113.7"], "203.0.113.7"),
    "trust in unix sockets alone": (("unix",), "127.0.0.1", ["203.0.113.7"], "127.0.0.1"),
    "a claim to be a unix socket": (("unix", "127.0.0.1"), "127.0.0.1", ["unix"], "127.0.0.1"),
}


@pytest.mark.parametrize(("trusted", "remote", "claims", "client"), CASES.values(), ids=CASES)
def test_the_client_is_the_last_hop_that_no_proxy_of_ours_made(
    trusted: tuple[str, ...], remote: str, claims: list[str], client: str
) -> None:
    headers = CIMultiDictProxy(CIMultiDict([("X-Forwarded-For", claim) for claim in claims]))
    assert client_address(peer_address(remote), headers, tuple(map(read_network, trusted))) == client


@pytest.mark.parametrize(
    "name", ["X-Real-IP", "CF-Connecting-IP", "True-Client-IP", "Forwarded", "Client-IP"]
)
def test_no_other_header_names_the_client(name: str) -> None:
    headers = CIMultiDictProxy(CIMultiDict({name: "6.6.6.6"}))
    assert client_address("127.0.0.1", headers, tuple(map(read_network, LAN))) == "127.0.0.1"
