"""Sockets as systemd passes them, from descriptor 3 on, meant for one pid; and all for the next program."""

import os
import socket
import subprocess
import sys

from supervisord_llm.systemd.activation import Passed, inherited
from tests.fakes.socket_activation import activated

SHOW = """
import os
from supervisord_llm.systemd.activation import inherited
found = inherited().systemd
left = sorted(name for name in os.environ if name.startswith(("LISTEN_", "LLM_SUPERVISOR_")))
print([(each.getsockname()[1], each.get_inheritable()) for each in found], left)
"""

TURNS = """
import os, socket, sys
from supervisord_llm.systemd.activation import OURS, Passed, inherited, keep, pass_on
found = inherited()
if found.lock is None:
    kept = socket.create_server(("127.0.0.1", 0))
    secret = os.open("/dev/null", os.O_RDONLY)
    lock = os.open("/dev/null", os.O_RDONLY)
    passed = Passed(found.systemd, "llm-supervisor.socket", {"here:0": (kept,)}, lock)
    variables = pass_on(passed)
    keep(passed)  # as after an execve that fails
    assert not any(map(os.get_inheritable, (3, kept.fileno(), lock)))
    variables = pass_on(passed)
    own = {"SECRET": str(secret), "KEPT": str(kept.getsockname()[1])}
    os.execve(sys.executable, sys.orig_argv, os.environ | variables | own)
(kept,) = found.listening["here:0"]
assert kept.getsockname()[1] == int(os.environ["KEPT"])
assert found.names == "llm-supervisor.socket"
assert not any(map(os.get_inheritable, (3, kept.fileno(), found.lock)))
try:
    os.fstat(int(os.environ["SECRET"]))
except OSError:
    print([each.getsockname()[1] for each in found.systemd], OURS in os.environ)
"""


def passed(listener: socket.socket, script: str = SHOW, pid: str = "") -> str:
    """What a child says that gets `listener`."""
    done = subprocess.run(
        activated(listener, [sys.executable, "-c", script], pid),
        pass_fds=[listener.fileno()],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_socket_meant_for_us_is_taken_and_kept_from_children() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert passed(listener) == f"[({listener.getsockname()[1]}, False)] []"


def test_a_socket_meant_for_another_process_is_left_alone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert passed(listener, pid="1") == "[] []"


def test_all_is_there_for_the_program_that_is_executed_next_and_nothing_else() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert passed(listener, TURNS) == f"[{listener.getsockname()[1]}] False"


def test_without_systemd_there_is_none() -> None:
    assert inherited({}) == Passed()
    assert inherited({"LISTEN_PID": str(os.getpid())}) == Passed()
    assert inherited({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "many"}) == Passed()
