"""A leaf per launch, in a real cgroup v2 where one can be had."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisord_llm.engines import cgroup
from supervisord_llm.engines.cgroup import Leaf
from supervisord_llm.engines.records import record_path
from supervisord_llm.engines.tree import Tree
from tests.engines.conftest import Fleet, Successor, stats_of


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A cgroup of our own in a fresh mount of the v2 hierarchy."""
    mount = tmp_path / "cgroup"
    mount.mkdir()
    tried = subprocess.run(["mount", "-t", "cgroup2", "none", mount], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"no cgroup v2 to be had: {tried.stderr.strip()}")
    try:
        root = mount / f"llm-supervisor-test-{uuid.uuid4().hex[:8]}"
        try:
            root.mkdir()
        except OSError as why:
            pytest.skip(f"no cgroup v2 to be had: {why}")
        yield root
        for directory in sorted(root.glob("**/"), reverse=True):
            directory.rmdir()
    finally:
        subprocess.run(["umount", mount], check=True)


def test_killing_a_leaf_ends_all_that_ever_forked_in_it(root: Path) -> None:
    leaf = Leaf.create(root, "engine")
    argv = leaf.entering(("/bin/sh", "-c", "setsid sleep 60 & setsid sleep 60 & exec sleep 60"))
    process = subprocess.Popen(argv)
    deadline = time.monotonic() + 5
    while len(leaf.members()) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(leaf.members()) == 3
    leaf.kill()
    assert process.wait(5) == -signal.SIGKILL
    while leaf.members() and time.monotonic() < deadline:
        time.sleep(0.01)
    leaf.remove()
    assert not leaf.path.exists()


async def test_an_engine_lives_in_its_leaf_from_the_start_and_the_leaf_dies_with_it(
    tmp_path: Path, root: Path
) -> None:
    fleet = Fleet(tmp_path, cgroup_root=root)
    engine = await fleet.ready("engine_core,leaves_grandchild")
    stats = await stats_of(engine)
    leaf = engine.process.tree.leaf
    assert leaf is not None
    assert leaf.members() == {stats["pid"], stats["core_pid"], stats["grandchild_pid"]}
    assert stats["pid"] == engine.process.pid  # the shell that entered the leaf became the engine
    await engine.stop(kill=False)
    assert not leaf.path.exists()
    await fleet.end()


async def test_a_leaf_that_cannot_be_entered_does_not_stop_the_launch(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, cgroup_root=tmp_path)  # not a cgroup at all
    await fleet.ready()
    await fleet.end()


def test_delegation_is_ours_only_when_marked(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "own_cgroup", lambda: root)
    assert cgroup.delegated_root() is None
    os.setxattr(root, "trusted.delegate", b"1")
    assert cgroup.delegated_root() == root


def test_in_our_own_leaf_the_root_is_the_one_above(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an upgrade in place, or under DelegateSubgroup=daemon."""
    monkeypatch.setattr(cgroup, "own_cgroup", lambda: root / "daemon")
    (root / "daemon").mkdir()
    assert cgroup.delegated_root() is None
    os.setxattr(root, "trusted.delegate", b"1")
    assert cgroup.delegated_root() == root


SETTLE_IN = """
import sys
from pathlib import Path
from supervisord_llm.engines import cgroup
cgroup.settle_in(Path(sys.argv[1]))
assert cgroup.own_cgroup().name == "daemon"
"""


async def test_the_daemon_settles_in_beside_leaves_of_an_earlier_life(tmp_path: Path, root: Path) -> None:
    """And adopts one of them, whose processes it finds in it whatever they did to hide."""
    successor = Successor(tmp_path)
    for _ in range(2):
        subprocess.run([sys.executable, "-c", SETTLE_IN, root], check=True)
        await successor.inherit({"behaviour": "engine_core,leaves_grandchild"}, cgroup_root=root)
        stats = successor.stats["alpha"]
        engine = await successor.adopt()
        leaf = engine.process.tree.leaf
        assert leaf is not None
        assert leaf.members() == {stats["pid"], stats["core_pid"], stats["grandchild_pid"]}
        await engine.stop(kill=False)
        assert not leaf.path.exists()
    await successor.end()


async def test_leaves_that_no_record_tells_of_are_swept(tmp_path: Path, root: Path) -> None:
    successor = Successor(tmp_path)
    await successor.inherit({"behaviour": "leaves_grandchild"}, {"model": "beta"}, cgroup_root=root)
    (root / "engine-gamma-1-empty").mkdir()
    kept = successor.record("beta")
    name = Path(successor.record().leaf or "").name
    record_path(successor.paths.engines, "alpha").unlink()
    done = await successor.sweep(kept.marker, root=root)
    assert done == [f"ended an engine without a record (cgroup {name}), left by an earlier run of the daemon"]
    assert [path.name for path in root.glob("engine-*")] == [Path(kept.leaf or "").name]
    assert Leaf(Path(kept.leaf or "")).members() == {kept.pid}
    await successor.sweep(root=root)
    assert list(root.glob("engine-*")) == []
    await successor.end()


def test_what_proc_does_not_show_is_not_gone(tmp_path: Path) -> None:
    """Under ProtectProc=invisible, a daemon that believed /proc would launch its models twice."""
    (tmp_path / "cgroup.procs").write_text("4000000\n")
    tree = Tree(4_000_000, 0, "marker", Leaf(tmp_path))
    assert tree.is_alive()
    assert not tree.kill()
    (tmp_path / "cgroup.procs").write_text("")
    assert not tree.is_alive()
    assert tree.kill()


def test_a_released_cgroup_takes_processes_again(root: Path) -> None:
    """systemd 252 puts a restarted daemon into the unit's cgroup, and fails where controllers are below."""
    control = root.parent / "cgroup.subtree_control"
    name = next(iter((root.parent / "cgroup.controllers").read_text().split()), None)
    if name is None:
        pytest.skip("no controller of cgroup v2 to be had")
    was_on = name in control.read_text().split()
    control.write_text(f"+{name}")
    child = subprocess.Popen(["/bin/sleep", "60"])
    leaf = Leaf.create(root, "engine")
    try:
        leaf.add(child.pid)
        (root / "cgroup.subtree_control").write_text(f"+{name}")
        with pytest.raises(OSError, match="busy"):
            Leaf(root).add(child.pid)
        cgroup.release(root)
        Leaf(root).add(child.pid)
        cgroup.release(root)
    finally:
        child.kill()
        child.wait()
        if not was_on:
            control.write_text(f"-{name}")


def test_our_own_cgroup_is_found_or_there_is_none() -> None:
    own = cgroup.own_cgroup()
    assert own is None or os.getpid() in {int(pid) for pid in (own / "cgroup.procs").read_text().split()}
