"""Whose processes they are, found without reading all of /proc."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from supervisord_llm.engines import ownership
from supervisord_llm.engines.cgroup import Leaf
from supervisord_llm.engines.ownership import Lineage
from supervisord_llm.engines.tree import Process, Tree, read_process
from tests.engines.conftest import Fleet, stats_of


async def test_every_process_of_an_engine_is_its_own_and_others_are_not(fleet: Fleet) -> None:
    stats = {}
    for model in ("alpha", "beta"):
        engine = await fleet.ready("engine_core,leaves_grandchild", model=model)
        stats[model] = await stats_of(engine)
    stranger = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True
    )
    ours = {stats[model][pid]: model for model in stats for pid in ("pid", "core_pid", "grandchild_pid")}
    assert len(ours) == 6
    try:
        asked = [*ours, stranger.pid, os.getpid(), 1, 2**22 + 1]
        assert fleet.launcher.owners(asked) == ours
        assert fleet.launcher.owners([]) == {}
    finally:
        stranger.communicate()
    await fleet.engines[0].stop(kill=True)
    assert set(fleet.launcher.owners(ours).values()) == {"beta"}


async def test_a_pid_of_before_the_launch_is_nobodys(fleet: Fleet) -> None:
    engine = await fleet.ready()
    tree = engine.process.tree
    late = Tree(tree.leader, tree.start_time + 1, tree.marker)
    assert ownership.owners([tree.leader], {"alpha": tree}) == {tree.leader: "alpha"}
    assert ownership.owners([tree.leader], {"alpha": late}) == {}


async def test_the_cgroup_tells_where_all_else_is_gone(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """A grandchild in a session of its own, whose parent is dead and whose title hides its environment."""
    engine = await fleet.ready("leaves_grandchild")
    pid = (await stats_of(engine))["grandchild_pid"]
    monkeypatch.setattr(ownership, "marker_of", lambda pid: None)
    tree = Tree(
        engine.process.pid, engine.process.tree.start_time, "m", Leaf(Path("/sys/fs/cgroup/x/engine-a-m"))
    )
    assert ownership.owners([pid], {"alpha": tree}) == {}
    monkeypatch.setattr(ownership, "groups_of", lambda pid: frozenset({"x", "engine-a-m"}))
    assert ownership.owners([pid], {"alpha": tree}) == {pid: "alpha"}


async def test_it_looks_at_few_processes_and_from_any_thread(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await fleet.ready("engine_core")
    pid = (await stats_of(engine))["core_pid"]
    looked: list[int] = []

    def look(pid: int) -> Process | None:
        looked.append(pid)
        return read_process(pid)

    monkeypatch.setattr(ownership, "read_process", look)
    found: list[dict[int, str]] = []
    thread = threading.Thread(target=lambda: found.append(fleet.launcher.owners([pid])))
    thread.start()
    thread.join()
    assert found == [{pid: "alpha"}]
    assert looked == [pid, engine.process.pid]


def test_nobody_has_no_lineage() -> None:
    assert Lineage.of(2**22 + 1) == Lineage((), frozenset(), frozenset())
