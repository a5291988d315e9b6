"""A machine with a systemd of its own: systemd-nspawn boots a copy-on-write view of this host's root.

It has its own processes, network and cgroups. Nothing of it outlives `close`, and no process or mount this
process, however that ends.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

CHECKOUT = Path(__file__).parents[2]
UV_CACHE = Path(os.environ.get("UV_CACHE_DIR") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "uv"))
BOOT_S, RUN_S = 60.0, 90.0
NOTHING: Mapping[str, str] = {}
Done = subprocess.CompletedProcess[str]
MASKED = """
systemd-firstboot.service systemd-networkd.service systemd-networkd.socket systemd-resolved.service
systemd-timesyncd.service systemd-udevd.service systemd-logind.service systemd-networkd-wait-online.service
ssh.service ssh.socket cron.service docker.service containerd.service e2scrub_reap.service postgresql.service
apt-daily.timer apt-daily-upgrade.timer fstrim.timer dpkg-db-backup.timer man-db.timer logrotate.timer
"""
"""The host's own, of no use here. A udevd in a container is known to have renamed the host's interface."""

SCRIPT = """\
set -eu
mount -t tmpfs -o size=2g,mode=755 machine "$T"
mkdir "$T/up" "$T/work" "$T/root" "$T/cgroup"
mount -t overlay -o lowerdir=/,upperdir="$T/up",workdir="$T/work" overlay "$T/root"
rm -f "$T/root/etc/machine-id"
for unit in $MASKED; do ln -sfn /dev/null "$T/root/etc/systemd/system/$unit"; done
ln -sfn /lib/systemd/system/multi-user.target "$T/root/etc/systemd/system/default.target"
mount -t cgroup2 cgroup "$T/cgroup"
mkdir "$T/cgroup/$NAME"
echo $$ >"$T/cgroup/$NAME/cgroup.procs"
exec systemd-nspawn --directory "$T/root" --boot --register=no --keep-unit --private-network \
    --machine="$NAME" --console=pipe --bind="$CHECKOUT" --bind="$CACHE" --system-call-filter=bpf
"""
"""In a mount and a process namespace of its own, so that mounts and processes go when it goes."""

UNSHARED = ("--mount", "--propagation", "private", "--pid", "--mount-proc", "--fork", "--kill-child")

SWEEP = """\
mount -t cgroup2 cgroup "$T"
[ -e "$T/$NAME" ] || exit 0
echo 1 >"$T/$NAME/cgroup.kill"
for _ in $(seq 50); do
    find "$T/$NAME" -depth -type d -exec rmdir {} + 2>/dev/null || true
    [ -e "$T/$NAME" ] || exit 0
    sleep 0.1
done
exit 1
"""


def unusable() -> str | None:
    """Why no machine can be booted here; None if it can."""
    if os.geteuid() != 0:
        return "a machine with a systemd of its own needs root"
    missing = [name for name in ("systemd-nspawn", "nsenter", "unshare", "setpriv") if not shutil.which(name)]
    if missing:
        return f"{', '.join(missing)} not found (Debian has systemd-nspawn in systemd-container)"
    if not Path("/usr/bin/python3").exists():
        return "there is no /usr/bin/python3, which the installed daemon would run on"
    if not _private(
        "mount -t cgroup2 cgroup $T && mkdir $T/$NAME && rmdir $T/$NAME", f"llm-probe-{os.getpid()}"
    ):
        return "control groups (v2) cannot be made here"
    return None


def _private(script: str, name: str) -> bool:
    """Run a shell script with a mount namespace and a directory $T of its own; whether it succeeded."""
    with tempfile.TemporaryDirectory(prefix="llms-") as directory:
        return (
            subprocess.run(
                ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
                env=os.environ | {"T": directory, "NAME": name},
                capture_output=True,
                check=False,
                timeout=60,
            ).returncode
            == 0
        )


class Machine:
    """Booted by `start`; commands run in it as root."""

    def __init__(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="llms-machine-"))
        self._name = f"llm-test-{os.getpid()}"
        self._log = self._directory.with_suffix(".log")
        self._unshare: subprocess.Popen[bytes] | None = None
        self._init = 0

    def start(self) -> None:
        """Boot it, and wait until it is up."""
        settings = {
            "T": str(self._directory),
            "NAME": self._name,
            "MASKED": " ".join(MASKED.split()),
            "CHECKOUT": str(CHECKOUT),
            "CACHE": str(UV_CACHE.expanduser()),
            "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1",
        }
        with self._log.open("wb") as log:
            self._unshare = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "unshare", *UNSHARED, "sh", "-c", SCRIPT],
                env=os.environ | settings,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._init = wait_for(self._find_init, BOOT_S, self._boot_log)
        wait_for(lambda: self._up() in ("running", "degraded"), BOOT_S, self._boot_log)
        self.run("ip", "link", "set", "lo", "up")

    def _find_init(self) -> int | None:
        assert self._unshare is not None
        assert self._unshare.poll() is None, self._boot_log()
        for process in psutil.Process(self._unshare.pid).children(recursive=True):
            with contextlib.suppress(OSError, psutil.Error):
                status = Path(f"/proc/{process.pid}/status").read_text()
                depth = next(line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:"))
                if len(depth) == 3 and depth[-1] == "1" and process.name() == "systemd":
                    return process.pid
        return None

    def _up(self) -> str:
        return self.run("systemctl", "is-system-running", check=False).stdout.strip()

    def _boot_log(self) -> str:
        return f"the machine does not boot:\n{self._log.read_text(errors='replace')[-4000:]}"

    def close(self) -> None:
        """End it and remove every trace."""
        try:
            if self._unshare is not None:
                is_swept = _private(SWEEP, self._name)  # first, so that unshare reaps what it started
                self._unshare.kill()
                self._unshare.wait()
                assert is_swept, f"control group {self._name} cannot be removed"
        finally:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._log.unlink(missing_ok=True)

    def run(self, *words: str, check: bool = True, environ: Mapping[str, str] = NOTHING) -> Done:
        """Run a command in the machine, as root."""
        inside = ["nsenter", "-t", str(self._init), "-m", "-u", "-i", "-p", "-n", "-C", "-r", "-w"]
        clean = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
        done = subprocess.run(
            [*inside, *words],
            env=clean | dict(environ),
            capture_output=True,
            text=True,
            timeout=RUN_S,
            check=False,
        )
        if check:
            assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def sh(self, script: str, check: bool = True) -> str:
        """What a shell script prints in the machine."""
        return self.run("sh", "-c", script, check=check).stdout

    def path(self, path: str) -> Path:
        """Where a file of the machine is on this host."""
        return Path(f"/proc/{self._init}/root", path.lstrip("/"))

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Make a file in the machine, and its directories."""
        file = self.path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)

    def exists(self, path: str) -> bool:
        return self.run("test", "-e", path, check=False).returncode == 0

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        """`systemctl show`."""
        words = [f"--property={','.join(properties)}", unit]
        return dict(line.split("=", 1) for line in self.run("systemctl", "show", *words).stdout.splitlines())

    def journal(self, unit: str, cursor: str = "") -> list[dict[str, Any]]:
        """The journal of a unit, from `cursor` on."""
        after = [f"--after-cursor={cursor}"] if cursor else []
        self.run("journalctl", "--sync")
        text = self.run("journalctl", "-o", "json", "-u", unit, *after).stdout
        return [json.loads(line) for line in text.splitlines()]

    def cursor(self) -> str:
        """Where the journal ends now."""
        self.run("journalctl", "--sync")
        lines = self.run("journalctl", "-n", "0", "--show-cursor").stdout.splitlines()
        return lines[-1].removeprefix("-- cursor: ")

    def freeze(self, unit: str, leaf: str) -> None:
        """Stop a cgroup of a unit, deaf to the SIGCONT that systemd sends after each SIGTERM."""
        self.sh(f"echo 1 >/sys/fs/cgroup/system.slice/{unit}/{leaf}/cgroup.freeze")

    def groups(self, unit: str) -> dict[str, list[int]]:
        """The cgroups of a unit that have processes: path below the unit's own -> pids in the machine."""
        script = 'cd "$0" && find . -name cgroup.procs | while read f; do echo "$f" $(cat "$f"); done'
        found = {}
        root = f"/sys/fs/cgroup/system.slice/{unit}"
        for line in self.run("sh", "-c", script, root, check=False).stdout.splitlines():
            path, *pids = line.split()
            if pids:
                found[str(Path(path).parent)] = [int(pid) for pid in pids]
        return found

    def signal(self, pid: int, which: signal.Signals) -> None:
        self.run("kill", f"-{which.value}", str(pid))


def wait_for(look: Callable[[], Any], limit_s: float, else_say: Callable[[], str] = lambda: "") -> Any:
    """What `look` gives once it gives something."""
    deadline = time.monotonic() + limit_s
    while not (found := look()):
        assert time.monotonic() < deadline, else_say()
        time.sleep(0.05)
    return found


@contextlib.contextmanager
def booted() -> Iterator[Machine]:
    """A machine that is up, and gone afterwards."""
    machine = Machine()
    try:
        machine.start()
        yield machine
    finally:
        machine.close()
