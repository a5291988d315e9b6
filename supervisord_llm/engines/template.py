"""What to run for a model of `engine = "command"`: its words with the placeholders filled in."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from supervisord_llm.config.model import Model
from supervisord_llm.config.template import fill, placeholders
from supervisord_llm.engines.command import DEFAULT_PATH, Command, Place, inherited, own_environment
from supervisord_llm.errors import ProvisionError


def template_command(model: Model, place: Place, base_env: Mapping[str, str]) -> Command:
    """The command that serves `model` at `place`, seeing only what it needs of `base_env`. Pure."""
    values = {
        "port": str(place.port),
        "socket": str(place.socket),
        "model": model.name,
        "gpus": ",".join(str(index) for index in place.gpus),
    }
    argv = (str(place.executable), *(fill(word, values) for word in model.command[1:]))
    settings = own_environment(model, place)
    if not place.isolated:
        del settings["HF_HUB_OFFLINE"]  # nobody downloads for it
    settings |= model.env
    env = inherited(base_env) | {"PATH": search_path(model, base_env)} | settings
    return Command(argv, env, tuple(settings))


def takes_port(model: Model) -> bool:
    """Whether its server listens on a TCP port: a process that does must be in the daemon's own network."""
    return model.engine == "command" and "port" in placeholders(model.command)


def find_program(model: Model, base_env: Mapping[str, str] = os.environ) -> Path:
    """The file that the command's first word names.

    Raises:
        ProvisionError: there is none, or it may not be run.
    """
    name = model.command[0]
    found = shutil.which(name, path=search_path(model, base_env))
    if found is not None:
        return Path(found).absolute()
    if "/" in name:
        why = "it may not be run" if Path(name).is_file() else "there is no such file"
        raise ProvisionError(f"cannot run {name}: {why}; correct `command`, or install it there")
    raise ProvisionError(
        f"cannot find the program {name} in {search_path(model, base_env)}: install it, write its path in "
        "`command`, or set PATH in the model's `env`"
    )


def search_path(model: Model, base_env: Mapping[str, str]) -> str:
    return model.env.get("PATH") or base_env.get("PATH") or DEFAULT_PATH
