"""Write a configuration file."""

import os
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import toml

from supervisord_llm.config.problem import KeyPath, Problem, dotted
from supervisord_llm.errors import ConfigError


def write_config(path: Path, data: dict[str, Any], header: str = "") -> None:
    """Write `data` as TOML below `header` (plain text; it becomes a comment), in one step or not at all.

    The `toml` package writes some values wrongly, so what it wrote is read back with tomllib first.

    Raises:
        ConfigError: TOML cannot hold `data`, or the file cannot be written. The file is as it was.
    """
    comment = "".join(f"# {line}".rstrip() + "\n" for line in header.splitlines())
    text = f"{comment}\n{_checked(path, data)}" if comment else _checked(path, data)
    try:
        _replace(path, text)
    except OSError as error:
        hint = "make its folder writable for this user"
        raise ConfigError(
            [Problem(path, None, "", f"cannot write it: {error.strerror}", hint=hint)]
        ) from None


def _checked(path: Path, data: dict[str, Any]) -> str:
    try:
        written = toml.dumps(data)
    except Exception as error:  # it stumbles over lists of mixed types and over some keys, in various ways
        raise _unwritable(path, f"the writer failed ({error!r})") from None
    try:
        read = tomllib.loads(written)
    except tomllib.TOMLDecodeError as error:
        raise _unwritable(path, f"what the writer made of it is not TOML ({error})") from None
    if read != data:
        raise _unwritable(path, f"{dotted(_difference(data, read))} would be read back as something else")
    return written


def _unwritable(path: Path, reason: str) -> ConfigError:
    return ConfigError([Problem(path, None, "", f"cannot write it: {reason}", hint="write the file by hand")])


def _difference(meant: Any, read: Any, path: KeyPath = ()) -> KeyPath:
    """The first place where two documents differ."""
    if isinstance(meant, dict) and isinstance(read, dict):
        for key in (*meant, *read):
            if key not in meant or key not in read or meant[key] != read[key]:
                return _difference(meant.get(key), read.get(key), (*path, key))
    return path


def _replace(path: Path, text: str) -> None:
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(mode)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
