"""Several TOML files as one: what they say together, and which file and line said it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from supervisord_llm.config.problem import KeyPath, Problem, dotted


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value was set."""

    file: Path | None = None
    line: int | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """One parsed file: its values and the line of each key."""

    file: Path
    values: Mapping[str, Any]
    lines: Mapping[KeyPath, int]


@dataclass(frozen=True, slots=True)
class Document:
    """The merged files."""

    values: Mapping[str, Any] = field(default_factory=dict)
    origins: Mapping[KeyPath, Origin] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    causes: Mapping[KeyPath, KeyPath] = field(default_factory=dict)
    """Where that was written which no file says in its place: path -> path, for all that is below, too."""
    numbered: frozenset[str] = frozenset()
    """Replicas whose `gpus` follow from their number alone."""

    def origin(self, path: KeyPath) -> Origin:
        """Where `path` was set; for a key that is not there, where its nearest parent was."""
        while path and path not in self.origins:
            path = path[:-1]
        return self.origins.get(path, Origin(self.files[0] if self.files else None))

    def written(self, path: KeyPath) -> KeyPath:
        """Where a file says what holds at `path`: there, or where it came from."""
        while path not in self.origins:
            known = next((path[:end] for end in range(len(path), 0, -1) if path[:end] in self.causes), None)
            if known is None:
                break
            path = (*self.causes[known], *path[len(known) :])
        return path


def merge(sources: Sequence[Source]) -> Document:
    """Later files win, key by key; tables merge, everything else (lists too) is replaced whole."""
    values: dict[str, Any] = {}
    origins: dict[KeyPath, Origin] = {}
    for source in sources:
        _overlay(values, origins, source, source.values, ())
    return Document(values, origins, tuple(source.file for source in sources))


def _overlay(
    values: dict[str, Any],
    origins: dict[KeyPath, Origin],
    source: Source,
    newer: Mapping[str, Any],
    parent: KeyPath,
) -> None:
    for key, value in newer.items():
        path = (*parent, key)
        if isinstance(value, dict):
            if not isinstance(values.get(key), dict):
                _forget(origins, path)
                values[key] = {}
            origins.setdefault(path, Origin(source.file, source.lines.get(path)))
            _overlay(values[key], origins, source, value, path)
            continue
        _forget(origins, path)
        values[key] = value
        origins[path] = Origin(source.file, source.lines.get(path))
        if isinstance(value, list):
            inside = ((known, line) for known, line in source.lines.items() if known[: len(path)] == path)
            origins.update({known: Origin(source.file, line) for known, line in inside})


def _forget(origins: dict[KeyPath, Origin], path: KeyPath) -> None:
    if path in origins:
        for known in [known for known in origins if known[: len(path)] == path]:
            del origins[known]


class Report:
    """Collects problems, each with the file and line that caused it."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.problems: list[Problem] = []
        self._paths: set[KeyPath] = set()

    def add(self, path: KeyPath, found: str, accepted: str = "", hint: str = "") -> None:
        """Record a problem at `path`. What a model got from another table is told once, of that table."""
        path = self._cause(path)
        origin = self.document.origin(path)
        problem = Problem(origin.file, origin.line, dotted(path), found, accepted, hint)
        self._paths.add(path)
        if problem not in self.problems:
            self.problems.append(problem)

    def in_order(self) -> list[Problem]:
        """The problems as someone reads who goes through the files from top to bottom."""
        files: dict[Path | None, int] = {file: index for index, file in enumerate(self.document.files)}
        return sorted(self.problems, key=lambda problem: (files.get(problem.file, 0), problem.line or 0))

    def clean(self, *paths: KeyPath) -> bool:
        """Whether nothing was reported at or below any of `paths`: then a check across them makes sense."""
        causes = [self._cause(path) for path in paths]
        return not any(known[: len(cause)] == cause for known in self._paths for cause in causes)

    def is_set(self, path: KeyPath) -> bool:
        """Whether a file says something at `path`, or where its value came from."""
        return self._cause(path) in self.document.origins

    def _cause(self, path: KeyPath) -> KeyPath:
        path = self.document.written(path)
        if path[:1] == ("models",) and len(path) > 2 and path not in self.document.origins:
            inherited = ("defaults", *path[2:])
            if inherited in self.document.origins:
                return inherited
        return path
