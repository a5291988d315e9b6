"""Where this host gets Python packages: pip's configuration, read for uv, which does not read it.

Standard library only: the bootstrap of a fresh checkout runs it before anything is installed.
"""

import configparser
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

DEFAULT_INDEX = "https://pypi.org/simple"


@dataclass(frozen=True, slots=True)
class PipConfig:
    """The settings of pip that say where packages come from. Empty where pip would use its default."""

    index_url: str | None = None
    extra_index_urls: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    trusted_hosts: tuple[str, ...] = ()
    cert: str | None = None
    no_index: bool = False

    @property
    def index_urls(self) -> tuple[str, ...]:
        """Every index to look at, the main one first."""
        return () if self.no_index else (self.index_url or DEFAULT_INDEX, *self.extra_index_urls)


def config_files(environ: Mapping[str, str]) -> list[Path]:
    """The files pip would read, the strongest last (https://pip.pypa.io/en/stable/topics/configuration/)."""
    named = environ.get("PIP_CONFIG_FILE")
    if named == os.devnull:  # pip's way to say "no configuration files at all"
        return []
    home = Path(environ.get("HOME") or Path("~").expanduser())
    machine = [
        Path(directory, "pip/pip.conf")
        for directory in (environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":")
    ]
    user = Path(environ.get("XDG_CONFIG_HOME") or home / ".config")
    files = [*machine, Path("/etc/pip.conf"), home / ".pip/pip.conf", user / "pip/pip.conf"]
    files += [Path(prefix, "pip.conf") for prefix in dict.fromkeys((sys.base_prefix, sys.prefix))]
    return [*files, Path(named)] if named else files


def read(environ: Mapping[str, str] | None = None) -> PipConfig:
    """What pip would use here: PIP_* variables, over the files; an unreadable file counts as absent."""
    environ = os.environ if environ is None else environ
    settings: dict[str, str] = {}
    for file in config_files(environ):
        parser = configparser.RawConfigParser()
        try:
            parser.read(file, encoding="utf-8")
        except (OSError, configparser.Error, UnicodeDecodeError):
            continue  # pip itself will complain about it; here a default is better than no start
        for section in ("global", "install"):
            if parser.has_section(section):
                settings |= {key.lower().replace("_", "-"): value for key, value in parser.items(section)}
    settings |= {
        key.removeprefix("PIP_").lower().replace("_", "-"): value
        for key, value in environ.items()
        if key.startswith("PIP_") and value
    }

    def words(key: str) -> tuple[str, ...]:
        return tuple(settings.get(key, "").split())

    return PipConfig(
        index_url=settings.get("index-url"),
        extra_index_urls=words("extra-index-url"),
        find_links=tuple(place for place in words("find-links") if _exists(place)),
        trusted_hosts=words("trusted-host"),
        cert=settings.get("cert"),
        no_index=settings.get("no-index", "").lower() in {"1", "true", "yes", "on"},
    )


def local_path(place: str) -> Path | None:
    """The directory or file that a find-links entry or index URL names on this host, if it does."""
    parts = urlsplit(place)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return None if parts.scheme else Path(place).expanduser()


def _exists(place: str) -> bool:
    """uv refuses a find-links directory that is not there; pip shrugs, and so do we."""
    path = local_path(place)
    return path is None or path.exists()


def uv_environment(pip: PipConfig, environ: Mapping[str, str]) -> dict[str, str]:
    """pip's settings as the variables uv reads. What `environ` already tells uv stays as it is.

    Variables and not arguments, since an index URL may hold a password and arguments show in `ps`.
    `no_index` has no variable: `uv_arguments` has it.
    """
    ours: dict[str, str] = {}
    if pip.index_url and "UV_INDEX_URL" not in environ:
        ours["UV_DEFAULT_INDEX"] = pip.index_url
    if pip.extra_index_urls and "UV_EXTRA_INDEX_URL" not in environ:
        ours["UV_INDEX"] = " ".join(pip.extra_index_urls)
        # pip takes the best version of all indexes; uv's own default stops at the first that has the name
        ours["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    if pip.find_links:
        ours["UV_FIND_LINKS"] = ",".join(pip.find_links)
    if pip.trusted_hosts:
        ours["UV_INSECURE_HOST"] = " ".join(pip.trusted_hosts)
    if pip.cert:
        ours["SSL_CERT_FILE"] = pip.cert
    return {key: value for key, value in ours.items() if key not in environ}


def uv_arguments(pip: PipConfig) -> tuple[str, ...]:
    """The one setting of pip that uv takes as an argument only."""
    return ("--no-index",) if pip.no_index else ()
