"""Where keys come from: the environment, dotenv files, plain files and systemd credentials.

Of clients' keys only SHA-256 digests leave this module, those of APIs elsewhere leave it as they are;
messages name places, never values.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from dotenv import dotenv_values

from supervisord_llm.config.problem import KeyUnavailable

SYSTEM_FILE = Path("/etc/llm-supervisor/llm-supervisor.env")


def unread(way: str, name: str) -> bytes:
    """In place of Keys.digest where nobody will be let in by a key: some digest of its own for each key."""
    return hashlib.sha256(f"{way} {name}".encode()).digest()


class Keys:
    """Keys as seen from a configuration in `folder`. Files are read when a key asks for them, and once."""

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        self.folder = folder
        self.environ = environ
        files = (folder / ".env", folder / "llm-supervisor.env", SYSTEM_FILE)
        self.files = tuple(dict.fromkeys(files))
        self._read: dict[Path, dict[str, str | None] | str] = {}

    def digest(self, way: str, name: str) -> bytes:
        """SHA-256 of the key that `way` ("key_env", "key_file", "key_credential") and `name` lead to.

        Raises:
            KeyUnavailable: it is not there, empty, not readable or more than one.
        """
        return hashlib.sha256(self._find(way, name)).digest()

    def key(self, way: str, name: str) -> str:
        """The key itself, for an API elsewhere; relative files begin in the folder.

        Raises:
            KeyUnavailable: as for `digest`, or no header can carry it.
        """
        found = self._find(way, str(self.folder / name) if way == "key_file" else name)
        if not (found.isascii() and (key := found.decode()).isprintable()):
            raise KeyUnavailable("it has characters that no header can carry; write the key alone there")
        return key

    def _find(self, way: str, name: str) -> bytes:
        match way:
            case "key_env":
                return self._variable(name)
            case "key_file":
                return _file(Path(name))
            case _:
                return self._credential(name)

    def _variable(self, name: str) -> bytes:
        if name in self.environ:
            return _one_key(os.fsencode(self.environ[name]), f"the variable {name} in the environment")
        looked = ["the environment"]
        for file in self.files:
            values = self._dotenv(file)
            if isinstance(values, str):
                looked.append(f"{file} ({values})")
            elif (value := values.get(name)) is not None:
                return _one_key(value.encode(), f"the variable {name} in {file}")
            else:
                looked.append(str(file))
        raise KeyUnavailable(
            f"the variable {name} is set in none of {', '.join(looked)}; set it in one of them"
        )

    def _dotenv(self, file: Path) -> dict[str, str | None] | str:
        """Its variables, or why there are none. Values are literal: a `$` in a key is a `$`."""
        if file not in self._read:
            try:
                found = dotenv_values(file, interpolate=False, encoding="utf-8-sig")
                self._read[file] = found if found or file.exists() else "no such file"
            except (OSError, UnicodeDecodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else None
                self._read[file] = (reason or "not UTF-8").lower()
        return self._read[file]

    def _credential(self, name: str) -> bytes:
        directory = self.environ.get("CREDENTIALS_DIRECTORY")
        if not directory:
            raise KeyUnavailable(
                f"$CREDENTIALS_DIRECTORY is not set; add LoadCredential={name} to the unit, or use key_file"
            )
        return _file(Path(directory) / name)


def _file(path: Path) -> bytes:
    try:
        return _one_key(path.read_bytes().strip(), f"the file {path}")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise KeyUnavailable(
            f"the file {path} cannot be read ({reason}); make it or correct the path"
        ) from None


def _one_key(key: bytes, place: str) -> bytes:
    if not key:
        raise KeyUnavailable(f"{place} is empty; write the key there")
    if len(key.splitlines()) > 1:  # which no header can carry
        way_out = "write one key alone, and others in places of their own"
        raise KeyUnavailable(f"{place} has more than one line; {way_out}")
    return key
