"""Listening sockets: bound once, found again by their address, and closed with it."""

import os
import socket
from pathlib import Path

import pytest

from supervisord_llm.config.checks.checks import warnings
from supervisord_llm.config.model import Address, Server
from supervisord_llm.errors import SupervisorError
from supervisord_llm.gateway.doors.doors import FOR_GROUP
from supervisord_llm.gateway.doors.listeners import Listeners
from tests.gateway.conftest import config, model

ANYWHERE = Address(host="127.0.0.1", port=0)


async def test_an_address_is_bound_once_and_found_again_by_the_next_program(tmp_path: Path) -> None:
    path = Address(path=tmp_path / "a.sock")
    first = Listeners()
    sockets = {str(each): await first.at(each) for each in (ANYWHERE, path)}
    assert await first.at(ANYWHERE) == sockets[str(ANYWHERE)]
    second = Listeners(passed=first.ours)
    assert await second.at(path) == sockets[str(path)]
    second.close_all_but((ANYWHERE,))
    assert [each.fileno() for each in sockets[str(path)]] == [-1]
    assert not (tmp_path / "a.sock").exists()
    (kept,) = await second.at(ANYWHERE)
    with socket.create_connection(kept.getsockname()):
        pass
    second.close_all_but(())
    assert kept.fileno() == -1
    assert second.ours == {}


async def test_a_unix_socket_is_open_to_whom_it_is_for(tmp_path: Path) -> None:
    """Whatever the umask: the unit's is 0077."""
    listeners = Listeners()
    before = os.umask(0o077)
    try:
        await listeners.at(Address(path=tmp_path / "public.sock"))
        await listeners.at(Address(path=tmp_path / "control.sock"), FOR_GROUP)
    finally:
        os.umask(before)
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("public.sock", "control.sock")]
    assert modes == [0o666, 0o660]
    listeners.close_all_but(())


async def test_a_name_may_have_several_addresses() -> None:
    listeners = Listeners()
    sockets = await listeners.at(Address(host="", port=0))
    assert {each.family for each in sockets} <= {socket.AF_INET, socket.AF_INET6}
    listeners.close_all_but(())


async def test_what_is_taken_is_not_had(tmp_path: Path) -> None:
    listeners = Listeners()
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = Address(host="127.0.0.1", port=other.getsockname()[1])
        with pytest.raises(SupervisorError, match="Address already in use"):
            await listeners.at(taken)
    with socket.socket(socket.AF_UNIX) as somebody:
        somebody.bind(str(tmp_path / "b.sock"))
        somebody.listen()
        with pytest.raises(SupervisorError, match="another process answers there"):
            await listeners.at(Address(path=tmp_path / "b.sock"))
        listeners.close_all_but(())
        assert (tmp_path / "b.sock").exists(), "it is somebody else's"
    (tmp_path / "file").write_text("precious")
    with pytest.raises(SupervisorError, match="something that is no socket is there"):
        await listeners.at(Address(path=tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "precious"
    assert listeners.ours == {}


async def test_a_stale_file_of_a_daemon_that_is_gone_is_no_obstacle(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(tmp_path / "c.sock"))
    listeners = Listeners()
    (found,) = await listeners.at(Address(path=tmp_path / "c.sock"))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(found.getsockname())
    listeners.close_all_but(())


@pytest.mark.parametrize(("host", "is_told"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_that_everybody_may_come_is_told_of_the_sockets_in_force(host: str, is_told: bool) -> None:
    listen = (Address(host="127.0.0.1" if is_told else "0.0.0.0", port=8000),)
    ours = config(model("alpha"), server=Server(listen=listen))
    with socket.create_server((host, 0)) as inherited:
        in_force = Listeners((inherited,)).in_force(listen)
        told = [sentence for sentence in warnings(ours, in_force) if "may use every model" in sentence]
        address = f"{host}:{inherited.getsockname()[1]}"
    assert told == ([f"anyone who reaches {address} may use every model: [auth] required is false"] * is_told)
    assert Listeners().in_force(listen) == listen
