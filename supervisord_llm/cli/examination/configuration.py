"""Reads the configuration as the daemon would, by whoever asks; and has `check` look at what it says."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from supervisord_llm.cli.diagnosis.access import User
from supervisord_llm.cli.diagnosis.finding import Finding, Level
from supervisord_llm.cli.diagnosis.systemd import Units
from supervisord_llm.cli.examination.limit import Call, NotTold
from supervisord_llm.cli.host import Fact
from supervisord_llm.cli.inspect import checked
from supervisord_llm.config.load import DEFAULT_FILE, NAME, config_file, default_paths, load
from supervisord_llm.config.model import Config, Paths
from supervisord_llm.config.remotes import keyless
from supervisord_llm.errors import ConfigError
from supervisord_llm.gpu.sensor import GpuReading
from supervisord_llm.provision.weights import Weights, local_path

CHECK_S = 60.0
"""Of it, up to half a minute goes to the help of a vLLM whose flags are not known."""

UNSEEN = "Permission denied"
SUDO = "`sudo llm-supervisor doctor`"
LEVELS: dict[str, Level] = {"ok": "ok", "hint": "warning", "bad": "problem"}


@dataclass(frozen=True, slots=True)
class Configured:
    """What was read. Without a `config`, `findings` say why."""

    paths: Paths
    config: Config | None = None
    findings: tuple[Finding, ...] = ()
    is_invalid: bool = False


def read_configuration(path: Path | None, *, is_installed: bool) -> Configured:
    """`is_installed`: the service's directories are those of the system's configuration, whoever asks."""
    environ = dict(os.environ)
    if is_installed and config_file(path) == DEFAULT_FILE:
        for variable, root in (("STATE", "/var/lib"), ("CACHE", "/var/cache"), ("RUNTIME", "/run")):
            environ.setdefault(f"{variable}_DIRECTORY", f"{root}/{NAME}")
    paths = default_paths(environ)
    try:
        config = load(path, environ, keys=False)
    except ConfigError as error:
        if all(UNSEEN in str(problem) for problem in error.problems):
            found = (Finding("warning", "file", f"{each}", SUDO) for each in error.problems)
            return Configured(paths, findings=tuple(found))
        found = (Finding("problem", "file", str(each)) for each in error.problems)
        return Configured(paths, findings=tuple(found), is_invalid=True)
    try:
        keys = tuple(map(_key, keyless(load(path, environ))))
    except ConfigError as error:
        keys = tuple(_key(str(each)) for each in error.problems)
        return Configured(config.paths, config, keys, any(each.level == "problem" for each in keys))
    return Configured(config.paths, config, keys)


def _key(problem: str) -> Finding:
    """Credentials are for the service alone, and secrets for root and the service."""
    if "$CREDENTIALS_DIRECTORY" in problem or os.geteuid() != 0:
        return Finding("warning", "keys", f"cannot be seen by this user: {problem}")
    return Finding("problem", "keys", problem)


def missing_weights(config: Config | None) -> list[str]:
    """The models whose weights are to be downloaded from a hub."""
    if config is None or not _is_readable(config.paths.state):
        return []
    weights = Weights(config.paths, os.environ)
    return [
        model.name
        for model in config.models.values()
        if model.engine == "vllm" and local_path(model) is None and weights.find(model) is None
    ]


def see_configuration(
    configured: Configured, reading: GpuReading, units: Units, user: User, *, is_serving: bool
) -> Iterator[Finding]:
    """What `check` finds, less what `doctor` knows better."""
    yield from configured.findings
    config = configured.config
    if config is None:
        return
    if not _is_readable(config.paths.state):  # of what models have; the service's is for itself alone
        text = f"not looked at, since this user may not read {config.paths.state}"
        yield Finding("warning", "models", text, SUDO)
        return
    try:
        facts = Call(lambda: checked(config, reading, is_serving=is_serving)).within(CHECK_S, "check")
    except (NotTold, OSError) as why:
        yield Finding("warning", "check", f"cannot look at everything: {why}", "`llm-supervisor check`")
        return
    theirs = [fact for fact in facts if not _is_ours(fact, reading, units, user)]
    good = sum(fact.level == "ok" for fact in theirs)
    files = ", ".join(map(str, config.files))
    yield Finding(
        "ok", "file", f"{files} is valid; of what `check` looks at, {good} of {len(theirs)} are right"
    )
    for fact in theirs:
        if fact.level != "ok":
            yield Finding(LEVELS[fact.level], fact.where, fact.text)


def _is_ours(fact: Fact, reading: GpuReading, units: Units, user: User) -> bool:
    """Whether `doctor` has told it already, or it is not so for the service, which is another user."""
    if fact.where == "gpus":
        return any(text and text in fact.text for text in (reading.absence, reading.unknown))
    if fact.where.startswith("server.listen"):
        return units.has_socket or bool(units.holders)
    if fact.where.startswith("paths."):
        return user.uid != os.geteuid()
    return fact.where == "disk"


def _is_readable(directory: Path) -> bool:
    """With what is in it, one level deep. Also where it is not made yet."""
    try:
        inside = [each for each in directory.iterdir() if each.is_dir()]
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return all(os.access(each, os.R_OK | os.X_OK) for each in (directory, *inside))
