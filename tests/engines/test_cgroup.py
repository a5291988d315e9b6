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

from supervisord_llm.config.model import Limits
from supervisord_llm.engines import cgroup
from supervisord_llm.engines.cgroup import Leaf
from supervisord_llm.engines.records import record_path
from supervisord_llm.engines.tree import Tree
from supervisord_llm.runtime.ports import Usage
from tests.engines.conftest import Fleet, Successor, make_model, stats_of

ON_STOP = Path(__file__).parents[2] / "units" / "on-stop"


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
cgroup.CONTROLLERS = sys.argv[2:] or cgroup.CONTROLLERS
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


def release(root: Path) -> None:
    """As the unit does between a daemon and its successor."""
    subprocess.run(["/bin/sh", ON_STOP, "release", root], check=True)


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
        release(root)
        Leaf(root).add(child.pid)
        release(root)
    finally:
        child.kill()
        child.wait()
        if not was_on:
            control.write_text(f"-{name}")


# --- limits -------------------------------------------------------------------------------------------------

LIMITS = Limits(memory_bytes=2**30, cpu=0.5, pids=4096)


@pytest.fixture
def bare(tmp_path: Path) -> Leaf:
    """A directory with the files of a leaf whose controllers are on, whether or not this machine has them."""
    leaf = Leaf.create(tmp_path, "bare")
    for file in ("memory.max", "memory.oom.group", "memory.current", "cpu.max", "pids.max"):
        (leaf.path / file).write_text("0\n")
    (leaf.path / "cpu.stat").write_text("usage_usec 1500000\nuser_usec 1000000\nsystem_usec 500000\n")
    return leaf


def held(leaf: Leaf) -> dict[str, str]:
    return {
        file: (leaf.path / file).read_text().strip()
        for file in ("memory.max", "memory.oom.group", "cpu.max", "pids.max")
    }


def test_limits_are_written_as_the_kernel_reads_them(bare: Leaf) -> None:
    assert bare.limit(Limits()) == ()
    assert set(held(bare).values()) == {"0"}
    assert bare.limit(LIMITS) == ()
    assert held(bare) == {
        "memory.max": str(2**30),
        "memory.oom.group": "1",
        "cpu.max": "50000 100000",
        "pids.max": "4096",
    }
    assert bare.limit(Limits(cpu=4)) == ()
    assert held(bare)["cpu.max"] == "400000 100000"


def test_each_limit_that_cannot_be_set_is_told_and_the_others_are_set(bare: Leaf) -> None:
    (bare.path / "memory.max").unlink()
    (bare.path / "cpu.max").unlink()
    (bare.path / "cpu.max").mkdir()
    memory, cpu = bare.limit(LIMITS)
    assert memory.startswith(
        "cannot enforce memory = 1GiB: the memory controller is not delegated to the daemon; run the daemon"
    )
    assert cpu == f"cannot enforce cpu = 0.5: {bare.path}/cpu.max: Is a directory; choose another value"
    assert not (bare.path / "memory.max").exists()
    assert (bare.path / "pids.max").read_text() == "4096"


def test_without_a_leaf_no_limit_holds() -> None:
    assert cgroup.no_leaf(Limits()) == ()
    told = cgroup.no_leaf(LIMITS)
    assert [line.partition(" =")[0] for line in told] == [
        f"cannot enforce {x}" for x in ("memory", "cpu", "pids")
    ]
    assert all("no cgroup of its own" in line and "Delegate=yes" in line for line in told)
    [odd] = cgroup.no_leaf(Limits(memory_bytes=1536 * 2**20 + 1))
    [even] = cgroup.no_leaf(Limits(memory_bytes=1536 * 2**20))
    assert "memory = 1610612737:" in odd
    assert "memory = 1536MiB:" in even


def test_a_real_leaf_takes_or_names_each_limit(root: Path) -> None:
    leaf = Leaf.create(root, "engine")
    present = (leaf.path / "cgroup.controllers").read_text().split()
    told = leaf.limit(LIMITS)
    assert [line.split()[2] for line in told] == [
        name for name in ("memory", "cpu", "pids") if name not in present
    ]
    subprocess.run(leaf.entering((sys.executable, "-c", "for _ in range(10**6): pass")), check=True)
    usage = leaf.usage()
    assert usage.cpu_s is not None
    assert 0 < usage.cpu_s < 60
    assert (usage.memory_bytes is None) == ("memory" not in present)


def test_a_fork_bomb_stops_at_its_limit_and_others_fork_on(root: Path) -> None:
    above, own = root.parent / "cgroup.subtree_control", root / "cgroup.subtree_control"
    if "pids" not in (root.parent / "cgroup.controllers").read_text().split():
        pytest.skip("the pids controller is not in cgroup v2 here: no fork bomb was tried")
    was_on = "pids" in above.read_text().split()
    above.write_text("+pids")
    own.write_text("+pids")
    bomb, other = Leaf.create(root, "bomb"), Leaf.create(root, "other")
    try:
        assert bomb.limit(Limits(pids=40)) == ()
        forks = "i=0; while [ $i -lt 400 ]; do sleep 60 & i=$((i+1)); done"
        argv = bomb.entering(("/bin/sh", "-c", forks))
        process = subprocess.Popen(argv, stderr=subprocess.DEVNULL, start_new_session=True)
        deadline = time.monotonic() + 10
        while len(bomb.members()) < 40 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert 30 < len(bomb.members()) <= 40
        subprocess.run(other.entering(("/bin/sh", "-c", "sleep 0 & wait")), check=True)
        bomb.kill()
        process.wait()
        while bomb.members() and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        bomb.remove()
        other.remove()
        own.write_text("-pids")
        if not was_on:
            above.write_text("-pids")


def test_usage_is_told_as_far_as_it_is_known(bare: Leaf) -> None:
    (bare.path / "memory.current").write_text("12345\n")
    assert bare.usage() == Usage(memory_bytes=12345, cpu_s=1.5)
    (bare.path / "memory.current").unlink()
    assert bare.usage() == Usage(cpu_s=1.5)
    bare.path.joinpath("cpu.stat").write_text("")
    assert bare.usage() == Usage()


def test_the_daemon_turns_on_what_is_delegated_and_no_more(root: Path) -> None:
    above = root.parent / "cgroup.subtree_control"
    name = next(iter((root.parent / "cgroup.controllers").read_text().split()), None)
    if name is None:
        pytest.skip("no controller of cgroup v2 to be had")
    was_on = name in above.read_text().split()
    above.write_text(f"+{name}")
    try:
        (root / "engine").mkdir()
        subprocess.run([sys.executable, "-c", SETTLE_IN, root, "absent", name], check=True)
        assert (root / "engine" / "cgroup.controllers").read_text().split() == [name]
        release(root)
        assert (root / "engine" / "cgroup.controllers").read_text().split() == []
    finally:
        (root / "cgroup.subtree_control").write_text(f"-{name}")
        if not was_on:
            above.write_text(f"-{name}")


@pytest.mark.parametrize("has_leaf", [True, False])
async def test_what_does_not_hold_is_logged_once_for_each_model(
    tmp_path: Path, has_leaf: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """In a directory that is no cgroup, and without delegation."""
    place = tmp_path / "place"
    place.mkdir()
    fleet = Fleet(tmp_path, cgroup_root=place if has_leaf else None)
    limits = {"limits": Limits(pids=4096)}
    for model in ("alpha", "beta", "alpha"):
        engine = await fleet.launch(model=model, config=limits)
        assert fleet.launcher.usage(model) == Usage()
        await engine.stop(kill=True)
    why = "pids controller is not delegated" if has_leaf else "engine has no cgroup of its own"
    lines = [record.getMessage() for record in caplog.records if "cannot enforce" in record.getMessage()]
    assert [line.partition(";")[0] for line in lines] == [
        f"models.{model}.limits: cannot enforce pids = 4096: the {why}" + " to the daemon" * has_leaf
        for model in ("alpha", "beta")
    ]
    assert fleet.launcher.usage("alpha") is None
    await fleet.end()


async def test_an_engine_is_limited_from_the_start_and_again_when_it_is_taken_over(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, Limits, int]] = []

    def limit(leaf: Leaf, limits: Limits) -> tuple[str, ...]:
        asked.append((leaf.path.name, limits, len(leaf.members())))
        return ()

    monkeypatch.setattr(Leaf, "limit", limit)
    fleet = Fleet(tmp_path / "first", cgroup_root=root)
    engine = await fleet.ready(config={"limits": LIMITS})
    usage = fleet.launcher.usage("alpha")
    assert usage is not None
    assert usage.cpu_s
    leaf = engine.process.tree.leaf
    assert leaf is not None
    assert asked == [(leaf.path.name, LIMITS, 0)]  # nobody was in it yet
    await fleet.end()

    asked.clear()
    successor = Successor(tmp_path / "second")
    await successor.inherit({}, cgroup_root=root)
    successor.models["alpha"] = make_model(limits=LIMITS)
    adopted = await successor.adopt()
    assert adopted.process.tree.leaf is not None
    assert asked == [(adopted.process.tree.leaf.path.name, LIMITS, 1)]
    await successor.end()


def test_our_own_cgroup_is_found_or_there_is_none() -> None:
    own = cgroup.own_cgroup()
    assert own is None or os.getpid() in {int(pid) for pid in (own / "cgroup.procs").read_text().split()}
