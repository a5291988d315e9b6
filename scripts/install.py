"""Install the daemon under a prefix with its units, user and example configuration; upgrade it; remove it.

Runs on a bare python3 >= 3.11: standard library only. Safe to run again at any time: what is there and right
is left alone, configuration and data always. A new version is built beside the one that runs.
"""

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAME = "llm-supervisor"
PREFIX = Path("/opt") / NAME
UNITS = (
    f"{NAME}.service",
    f"{NAME}-reaper.service",
    f"{NAME}-fetch.service",
    f"{NAME}-fetch@.service",
    f"{NAME}-fetch.socket",
    f"{NAME}.socket",
    f"{NAME}.target",
)
PAGES = (
    f"man/man1/{NAME}.1",
    f"bash-completion/completions/{NAME}",
    f"zsh/site-functions/_{NAME}",
    f"fish/vendor_completions.d/{NAME}.fish",
)
MIN_SYSTEMD = 252
NEEDED_BYTES = 1 << 29
HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108 - by ProtectHome= and PrivateTmp=

sys.path.insert(0, str(ROOT))

from supervisord_llm.errors import ProvisionError  # noqa: E402 - the checkout is not installed yet
from supervisord_llm.provision import pip_config, uv_wheel  # noqa: E402


@dataclass(frozen=True, slots=True)
class Places:
    """Where things go. `prefix` is as the installed system sees it, `destdir` is put before every path."""

    prefix: Path
    destdir: Path

    def at(self, path: str | Path) -> Path:
        """Where to write what is to become `path`."""
        return self.destdir / str(path).lstrip("/")

    @property
    def staged(self) -> bool:
        """Into a directory, for a package or a test: no user, no systemd."""
        return self.destdir != Path("/")

    @property
    def home(self) -> Path:
        return self.at(self.prefix)

    @property
    def current(self) -> Path:
        """The link to the build in force."""
        return self.home / "venv"

    @property
    def units(self) -> Path:
        return self.at("/etc/systemd/system")

    @property
    def command(self) -> Path:
        return self.at("/usr/local/bin") / NAME

    @property
    def share(self) -> Path:
        """Of the man page and the completions."""
        return self.at("/usr/local/share")

    @property
    def config(self) -> Path:
        return self.at("/etc") / NAME


def main() -> int:
    """Exit code 0 when done, 1 when it cannot be."""
    parser = argparse.ArgumentParser(prog="scripts/install", description=__doc__.splitlines()[0])
    parser.add_argument("--prefix", type=Path, help=f"where the program goes ({PREFIX}, or where it is now)")
    parser.add_argument(
        "--destdir", type=Path, default=Path("/"), help="put everything below DIR; no user, no systemd"
    )
    parser.add_argument(
        "--uninstall", action="store_true", help="stop it and remove it; keeps configuration and data"
    )
    parser.add_argument(
        "--purge", action="store_true", help="with --uninstall: remove those and the user, too"
    )
    arguments = parser.parse_args()
    if arguments.purge and not arguments.uninstall:
        parser.error("--purge goes with --uninstall")
    os.umask(0o022)
    destdir = arguments.destdir.absolute()
    places = Places(arguments.prefix or installed_prefix(destdir) or PREFIX, destdir)
    try:
        refuse(places)
        if arguments.uninstall:
            uninstall(places, purge=arguments.purge)
        else:
            install(places)
    except ProvisionError as problem:
        print(problem, file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as problem:
        print(f"cannot go on: `{' '.join(problem.cmd)}` failed; mend that and run it again", file=sys.stderr)
        return 1
    except OSError as problem:
        print(f"cannot install: {problem}; mend that and run it again", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; run it again to resume", file=sys.stderr)
        return 130
    return 0


def installed_prefix(destdir: Path) -> Path | None:
    """The prefix of the unit that is installed."""
    try:
        unit = (destdir / "etc/systemd/system" / f"{NAME}.service").read_text()
    except OSError:
        return None
    found = re.search(r"^Environment=PATH=([^:\n]+)/venv/bin", unit, re.MULTILINE)
    return Path(found[1]) if found else None


def refuse(places: Places) -> None:
    """
    Raises:
        ProvisionError: it cannot work here.
    """
    if not places.prefix.is_absolute() or re.search(r"[\s%:|]", str(places.prefix)):
        raise ProvisionError(
            f"cannot install in {places.prefix}: give --prefix an absolute path without spaces, %, : and |"
        )
    for hidden in HIDDEN:
        if places.prefix.is_relative_to(hidden):
            raise ProvisionError(
                f"cannot install in {places.prefix}: the service has no {hidden}; choose another --prefix"
            )
    if places.staged:
        return
    if os.geteuid() != 0:
        raise ProvisionError("cannot install: only root may; run it with sudo, or stage it with --destdir")
    try:
        answer = subprocess.run(["systemctl", "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as problem:
        raise ProvisionError(
            "cannot install: there is no systemd; run the daemon by hand with scripts/quickstart instead"
        ) from problem
    if int(answer.split()[1]) < MIN_SYSTEMD:
        raise ProvisionError(
            f"cannot install: systemd {answer.split()[1]} is too old, {MIN_SYSTEMD} is needed; "
            "Debian 12 and Ubuntu 24.04 have it"
        )


# --- install -----------------------------------------------------------------------------------------------


def install(places: Places) -> None:
    """Program, units, user, example configuration; then what to type next."""
    is_upgrade = places.current.is_symlink()
    build(places)
    for directory, files in extras().items():
        for name, source in files.items():
            put(
                source,
                places.home / directory / name,
                places,
                mode=0o755 if directory == "libexec" else 0o644,
            )
    new_units = [unit for unit in UNITS if put(ROOT / "units" / unit, places.units / unit, places)]
    for kind in ("sysusers.d", "tmpfiles.d"):
        put(ROOT / "units" / kind / f"{NAME}.conf", places.at("/etc") / kind / f"{NAME}.conf", places)
    link(places.command, places.prefix / "venv/bin" / NAME)
    run(str(places.current / "bin/python"), "-P", str(ROOT / "scripts/pages.py"), str(places.share))
    configure(places)
    if not places.staged:
        run("systemd-sysusers", f"/etc/sysusers.d/{NAME}.conf")
        run("systemd-tmpfiles", "--create", f"/etc/tmpfiles.d/{NAME}.conf")
        if systemd_runs():
            run("systemctl", "daemon-reload")
    tell(places, is_upgrade=is_upgrade, has_new_units=bool(new_units))


def extras() -> dict[str, dict[str, Path]]:
    """What else goes under the prefix: directory -> name -> source."""
    return {
        "libexec": {"on-stop": ROOT / "units/on-stop"},
        "docs": {"systemd.md": ROOT / "docs/systemd.md"},
        "examples": {file.name: file for file in (ROOT / "etc").glob("*.toml")},
        "drop-ins": {file.name: file for file in (ROOT / "units/drop-ins").glob("*.conf")},
    }


def put(source: Path, target: Path, places: Places, mode: int = 0o644) -> bool:
    """Copy a text file, with the prefix in it, whole or not at all. Whether it is another one now."""
    text = source.read_text().replace(str(PREFIX), str(places.prefix))
    is_new = not target.exists() or target.read_text() != text
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.new")
    aside.write_text(text)
    aside.chmod(mode)
    aside.replace(target)
    return is_new


def link(path: Path, target: Path) -> None:
    """Make `path` a symlink to `target`, in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.new")
    aside.unlink(missing_ok=True)
    aside.symlink_to(target)
    aside.replace(path)


def configure(places: Places) -> None:
    """An example configuration, and a file for secrets, where there are none."""
    (places.config / "conf.d").mkdir(parents=True, exist_ok=True)
    config = places.config / "config.toml"
    if not config.exists():
        shutil.copyfile(ROOT / "etc/config.toml", config)
    for name, mode, line in (
        (f"{NAME}.env", 0o640, "# Secrets, NAME=value, for root, the service and its engines to read."),
        ("fetch.env", 0o600, "# For downloads alone, NAME=value, such as HF_TOKEN=… for gated models."),
    ):
        if not (places.config / name).exists():
            descriptor = os.open(places.config / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            with os.fdopen(descriptor, "w") as file:
                file.write(f"{line}\n")


def fingerprint(python: Path) -> str:
    """What a build depends on: the sources, the pins, the interpreter."""
    digest = hashlib.sha256(f"{python} {sys.version}".encode())
    for file in (ROOT / "pyproject.toml", ROOT / "scripts/requirements.txt", *sources()):
        digest.update(f"{file.relative_to(ROOT)}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def sources() -> list[Path]:
    return sorted(file for file in (ROOT / "supervisord_llm").rglob("*") if file.suffix in (".py", ".typed"))


def build(places: Places) -> None:
    """Make the venv of this version and switch to it. The last one stays: a daemon may import from it."""
    python = Path(os.path.realpath(sys.executable))
    name = fingerprint(python)
    directory = places.home / "builds" / name
    before = places.current.readlink().name if places.current.is_symlink() else name
    if not (directory / "complete").exists():
        places.home.mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(places.home).free) < NEEDED_BYTES:
            raise ProvisionError(
                f"cannot install in {places.home}: {free >> 20} MiB are free, "
                f"{NEEDED_BYTES >> 20} are needed; free some space, or choose another --prefix"
            )
        print(f"builds {directory}", flush=True)
        shutil.rmtree(directory, ignore_errors=True)
        fill(directory, places)
        (directory / ".lock").unlink(missing_ok=True)  # uv's, and writable for all
        (directory / "complete").touch()
    link(places.current, Path("builds") / name)
    for other in (places.home / "builds").iterdir():
        if other.name not in (name, before):
            shutil.rmtree(other, ignore_errors=True)


def fill(directory: Path, places: Places) -> None:
    """The venv in `directory`: the pinned requirements, then the project."""
    venv.create(directory, symlinks=True, clear=True)
    pip = pip_config.read()
    environ = os.environ | pip_config.uv_environment(pip, os.environ)
    # Copies: nothing that root runs shares its bytes with a cache.
    environ |= {"UV_LINK_MODE": "copy", "UV_COMPILE_BYTECODE": "1"}
    with tempfile.TemporaryDirectory(prefix=f"{NAME}-") as scratch:
        project = Path(scratch) / "project"  # building leaves files in the source tree, so in a copy of it
        for file in (*sources(), *(ROOT / name for name in ("pyproject.toml", "README.md", "LICENSE"))):
            copy = project / file.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
        uv = [str(find_uv(pip, Path(scratch))), "pip"]
        python = ["--quiet", "--python", str(directory / "bin/python")]
        more = pip_config.uv_arguments(pip)
        for command in (
            [*uv, "install", *python, *more, "--requirement", str(ROOT / "scripts/requirements.txt")],
            [*uv, "install", *python, *more, "--no-deps", str(project)],
            [*uv, "check", *python],
        ):
            if subprocess.run(command, env=environ, check=False).returncode != 0:
                raise ProvisionError(
                    "cannot install the daemon's dependencies (uv says why above): check the network and the "
                    "package index of pip's configuration, then run it again; it resumes"
                )
    if places.staged:  # scripts name the directory that they were made in
        for script in (directory / "bin").iterdir():
            if script.is_file() and not script.is_symlink() and script.read_bytes()[:2] == b"#!":
                script.write_text(script.read_text().replace(str(places.home), str(places.prefix)))


def find_uv(pip: pip_config.PipConfig, scratch: Path) -> Path:
    """uv from the checkout's .venv, from PATH, or from the package index."""
    for candidate in (str(ROOT / ".venv/bin/uv"), shutil.which("uv")):
        if candidate and shutil.which(candidate):
            return Path(candidate)
    return uv_wheel.fetch_uv(pip, scratch)


def tell(places: Places, *, is_upgrade: bool, has_new_units: bool) -> None:
    """The three next commands."""
    print(f"{NAME} is installed in {places.home}")
    if not places.staged and not systemd_runs():
        print(
            "note: systemd does not run here; on WSL2 put [boot] systemd=true into /etc/wsl.conf, "
            "then `wsl --shutdown` on Windows"
        )
    if is_upgrade:
        lines = (
            (f"{NAME} check", "is the configuration still right?"),
            (
                f"systemctl restart {NAME}" if has_new_units else f"{NAME} upgrade",
                "switch to this version; engines stay",
            ),
            (f"journalctl -u {NAME} -f", "what it says"),
        )
    else:
        lines = (
            (f"${{EDITOR:-nano}} /etc/{NAME}/config.toml && {NAME} check", "name your models and clients"),
            (f"systemctl start {NAME}-fetch", "download venvs and weights, ahead of the first request"),
            (f"systemctl enable --now {NAME}", "serve on port 8000; journalctl -u llm-supervisor -f"),
        )
    print("Next:")
    for command, why in lines:
        print(f"  {command:<62}  # {why}")


# --- uninstall ---------------------------------------------------------------------------------------------


def uninstall(places: Places, *, purge: bool) -> None:
    """Stop it, then remove what `install` put there, and with `purge` what people and the daemon made."""
    if not places.staged and systemd_runs():
        ours = [unit for unit in UNITS if (places.units / unit).exists() and "@" not in unit]
        if ours:
            run("systemctl", "disable", "--now", "--quiet", *ours)
            run("systemctl", "stop", f"{NAME}-fetch@*.service")
        if (on_stop := places.home / "libexec/on-stop").exists():
            run("sh", str(on_stop), "end")  # engines, if on_stop is "keep"
    for unit in UNITS:
        (places.units / unit).unlink(missing_ok=True)
    for kind in ("sysusers.d", "tmpfiles.d"):
        (places.at("/etc") / kind / f"{NAME}.conf").unlink(missing_ok=True)
    if places.command.is_symlink():
        places.command.unlink()
    for page in PAGES:
        (places.share / page).unlink(missing_ok=True)
    places.current.unlink(missing_ok=True)
    shutil.rmtree(places.home / "builds", ignore_errors=True)
    for directory, names in extras().items():  # by name: the prefix may be /usr/local
        for name in names:
            (places.home / directory / name).unlink(missing_ok=True)
        remove_if_empty(places.home / directory)
    remove_if_empty(places.home)
    shutil.rmtree(places.at("/run") / NAME, ignore_errors=True)
    if not places.staged and systemd_runs():
        run("systemctl", "daemon-reload")
        subprocess.run(["systemctl", "reset-failed", f"{NAME}*"], check=False, capture_output=True)
    data = [places.at(where) / NAME for where in ("/etc", "/var/lib", "/var/cache")]
    if not purge:
        print(f"{NAME} is removed; kept: {', '.join(map(str, data))} (--uninstall --purge removes them)")
        return
    for drop_ins in places.units.glob(f"{NAME}*.d"):
        shutil.rmtree(drop_ins)
    for each in data:
        shutil.rmtree(each, ignore_errors=True)
    if not places.staged:
        subprocess.run(["userdel", NAME], check=False, capture_output=True)
        subprocess.run(["groupdel", NAME], check=False, capture_output=True)
    print(f"{NAME} is removed, with its configuration, data and user")


def remove_if_empty(directory: Path) -> None:
    if directory.is_dir() and not any(directory.iterdir()):
        directory.rmdir()


# --- systemd -----------------------------------------------------------------------------------------------


def systemd_runs() -> bool:
    """Whether this host was booted by systemd: sd_booted(3)."""
    return Path("/run/systemd/system").is_dir()


def run(*command: str) -> None:
    subprocess.run(command, check=True)


if __name__ == "__main__":
    sys.exit(main())
