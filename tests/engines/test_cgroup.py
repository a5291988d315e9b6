"""A leaf per launch, in a real cgroup v2 where one can be had."""

import os
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisord_llm.engines import cgroup
from supervisord_llm.engines.cgroup import Leaf
from tests.engines.conftest import Fleet, stats_of


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


def test_our_own_cgroup_is_found_or_there_is_none() -> None:
    own = cgroup.own_cgroup()
    assert own is None or os.getpid() in {int(pid) for pid in (own / "cgroup.procs").read_text().split()}
