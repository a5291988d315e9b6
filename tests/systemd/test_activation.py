"""Sockets passed as systemd passes them: from descriptor 3 on, meant for one pid."""

import socket
import subprocess
import sys

from supervisord_llm.systemd.activation import inherited_sockets
from tests.fakes.socket_activation import activated

SHOW = """
import os
from supervisord_llm.systemd.activation import inherited_sockets
found = inherited_sockets()
print([(each.getsockname()[1], each.get_inheritable()) for each in found], "LISTEN_FDS" in os.environ)
"""


def passed(listener: socket.socket, pid: str = "") -> str:
    """What a child says that gets `listener`."""
    done = subprocess.run(
        activated(listener, [sys.executable, "-c", SHOW], pid),
        pass_fds=[listener.fileno()],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_a_socket_meant_for_us_is_taken_and_kept_from_children() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert passed(listener) == f"[({listener.getsockname()[1]}, False)] False"


def test_a_socket_meant_for_another_process_is_left_alone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert passed(listener, "1") == "[] False"


def test_without_systemd_there_is_none() -> None:
    assert inherited_sockets({}) == []
