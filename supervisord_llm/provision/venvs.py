"""Each model's virtual environment, built by uv.

    <state>/venvs/MODEL             symlink to the build that the next launch uses
    <state>/venvs/.builds/MODEL-FINGERPRINT[-N]   finished builds; none of them ever changes
    <state>/venvs/.partial/MODEL    the build in progress, removed by whoever finds it
    <state>/venvs/.locks/           one flock a model and a fingerprint

An engine runs from the build itself, not through the symlink, so that switching to a new build changes
nothing under a live engine. Builds of one fingerprint share their files on disk by hard links, .pyc included.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from supervisord_llm.config.model import Model, Paths, Venv
from supervisord_llm.errors import ProvisionError
from supervisord_llm.provision import pip_config, recipes, uv
from supervisord_llm.provision.lock import locked, locked_now
from supervisord_llm.provision.waiting import in_thread
from supervisord_llm.runtime.ports import Progress, Report

log = logging.getLogger(__name__)

STAMP = "llm-supervisor.json"
EXECUTABLE = Path("bin/vllm")


class Venvs:
    """The environments under `paths.venvs`.

    `cuda`, whether this host has a GPU, picks the environment of models that configure none.
    `environ` is what uv gets to see a part of.
    """

    def __init__(self, paths: Paths, *, cuda: bool, environ: Mapping[str, str]) -> None:
        self._state = paths.state
        self._root = paths.venvs
        self._cache = paths.cache
        self.cuda = cuda
        self._environ = environ

    # --- what is there ----------------------------------------------

    def spec(self, model: Model) -> Venv:
        """What the model's environment is made of."""
        if model.venv is not None:
            return model.venv
        # a CUDA build of vLLM cannot run on a CPU
        return recipes.default_venv(cuda=self.cuda and model.gpus != ())

    def find(self, model: Model) -> Path | None:
        """The directory a launch uses: the configured path, or the finished build; None if there is none."""
        spec = self.spec(model)
        if spec.path is not None:
            return spec.path if (spec.path / EXECUTABLE).is_file() else None
        try:
            build = self._root / ".builds" / (self._root / model.name).readlink().name
        except OSError:
            return None
        return build if self._is_whole(build, self.fingerprint(spec)) else None

    def check_path(self, model: Model) -> None:
        """
        Raises:
            ProvisionError: the configuration names an environment that is none.
        """
        path = self.spec(model).path
        if path is not None and self.find(model) is None:
            raise ProvisionError(
                f"cannot use the venv of {model.name}: {path / EXECUTABLE} does not exist; "
                f"install vllm into {path}, or let requirements build a venv"
            )

    @staticmethod
    def fingerprint(spec: Venv) -> str:
        """Twelve hex digits over what the configuration says about an environment."""
        places = (spec.index_url, *spec.extra_index_urls, *spec.find_links)
        facts = [recipes.VERSION, spec.requirements, spec.python, places]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]

    def _python(self, spec: Venv) -> str:
        places = (*spec.find_links, *pip_config.read(self._environ).find_links)
        directories = [path for place in places if (path := pip_config.local_path(place)) and path.is_dir()]
        wheels = [file.name for directory in directories for file in directory.glob("*.whl")]
        return recipes.python_for(spec, recipes.recipe_for(spec.requirements), wheels)

    @staticmethod
    def _is_whole(build: Path, fingerprint: str) -> bool:
        """Whether it was finished, for this fingerprint, and still has its command and a working Python."""
        stamp = _stamp(build)
        return (
            stamp.get("fingerprint") == fingerprint
            and (build / EXECUTABLE).is_file()
            and (build / "bin/python").exists()
        )

    # --- making it --------------------------------------------------

    async def build(self, model: Model, report: Report) -> Path:
        """The model's environment, built if it is not there. Cancelling leaves nothing behind.

        Raises:
            ProvisionError: why it cannot be had.
        """
        self.check_path(model)
        if (found := self.find(model)) is not None:
            return found
        spec = self.spec(model)
        fingerprint = self.fingerprint(spec)
        try:
            # Always in this order, model then fingerprint. The second of two equal builds clones the first.
            async with (
                locked(self._model_lock(model.name), report) as turn,
                locked(self._root / ".locks" / f"build-{fingerprint}", report) as build,
            ):
                held = (turn, build)
                return self.find(model) or await self._build(model, spec, fingerprint, held, report)
        except OSError as problem:
            raise ProvisionError(
                f"cannot build the venv of {model.name}: {problem}; check {self._root} and its disk",
                temporary=True,
            ) from problem

    async def _build(
        self, model: Model, spec: Venv, fingerprint: str, held: Sequence[int], report: Report
    ) -> Path:
        partial = self._root / ".partial" / model.name
        builds = self._root / ".builds"
        builds.mkdir(parents=True, exist_ok=True)
        try:
            await _remove(partial, report)
            partial.parent.mkdir(exist_ok=True)
            whole = (build for build in sorted(builds.iterdir()) if self._is_whole(build, fingerprint))
            if (twin := next(whole, None)) is not None:
                report(Progress(f"cloning the venv of {_stamp(twin).get('model', twin.name)}"))
                await _clone(twin, partial, report)
            if not (partial / STAMP).exists():
                await self._install(model.name, spec, partial, held, report)
            _check(model.name, partial)
            _write_stamp(partial, model.name, spec, fingerprint)
            build = _free_name(builds, f"{model.name}-{fingerprint}")
            partial.rename(build)
        finally:
            await _remove(partial, report)
        _switch(self._root / model.name, build)
        return build

    async def _install(
        self, name: str, spec: Venv, partial: Path, held: Sequence[int], report: Report
    ) -> None:
        recipe = recipes.recipe_for(spec.requirements)
        free = shutil.disk_usage(self._root).free
        if free < recipe.needs_bytes:
            raise ProvisionError(
                f"cannot build the venv of {name}: it needs about {recipe.needs_bytes / 2**30:.0f} GiB and "
                f"{free / 2**30:.1f} GiB are free on {self._root}: free some, or set [paths] state",
                temporary=True,
            )
        environ = uv.environment(self._environ, spec, self._cache_directory(), self._state / "python")
        python = self._python(spec)
        here = f"{sys.version_info.major}.{sys.version_info.minor}"
        # our own interpreter by its path, since PATH of a service may not lead to it
        interpreter: str | Path = Path(sys.executable).resolve() if python == here else python
        target = partial / "bin/python"
        excludes = partial / "excludes.txt"
        install: list[str | Path] = ["pip", "install", "--python", target, "--compile-bytecode"]
        install += ["--excludes", excludes, *spec.requirements]
        install += pip_config.uv_arguments(pip_config.read(self._environ))
        try:
            report(Progress("resolving"))
            create = ["venv", "--relocatable", "--python", interpreter, partial]
            await uv.run(create, environ, self._root, held, report)
            excludes.write_text("".join(f"{name}\n" for name in recipe.excludes))
            await self._try_backends(install, recipe, environ, held, report)
        except uv.NoSpace as problem:
            needs = f"it needs about {recipe.needs_bytes / 2**30:.0f} GiB; " if recipe.needs_bytes else ""
            room = " and ".join(map(_free, (self._root, Path(environ["UV_CACHE_DIR"]))))
            raise ProvisionError(
                f"cannot build the venv of {name}: {problem}; {needs}free are {room}", temporary=True
            ) from problem
        except ProvisionError as problem:
            raise ProvisionError(
                f"cannot build the venv of {name}: {problem}", temporary=problem.temporary
            ) from problem
        if recipe.alias is not None:
            _add_alias(partial, *recipe.alias)

    async def _try_backends(
        self,
        install: list[str | Path],
        recipe: recipes.Recipe,
        environ: Mapping[str, str],
        held: Sequence[int],
        report: Report,
    ) -> None:
        *others, last = recipe.torch_backends
        for backend in others:
            try:
                return await uv.run([*install, *_backend(backend)], environ, self._root, held, report)
            except ProvisionError as problem:
                # only "no such torch here" makes another place of torch worth a try
                if not re.search(
                    r"no version of torch\W|\btorch was not found|\btorch\S* has no wheels", str(problem)
                ):
                    raise
        return await uv.run([*install, *_backend(last)], environ, self._root, held, report)

    def _cache_directory(self) -> Path:
        """uv's cache; on the file system of the venvs, or every venv would be a copy."""
        cache = self._cache / "uv"
        return cache if _device(cache) == _device(self._root) else self._state / "uv-cache"

    # --- removing it ------------------------------------------------

    async def collect(self, model: str, report: Report) -> None:
        """Remove the model's builds that its next launch would not use. Call it with no live engine of it.

        With nothing to remove this lists one directory. While someone builds for the model (`pull` beside the
        daemon), what looks old may be about to become current: then it is left for the next time.
        """
        if self._old_builds(model):
            await in_thread(lambda: self._collect(model), report)

    def _collect(self, model: str) -> None:
        try:
            with locked_now(self._model_lock(model)) as is_ours:
                for build in self._old_builds(model) if is_ours else []:
                    # without its stamp it is not trusted: a clone in progress notices that it lost its source
                    (build / STAMP).unlink(missing_ok=True)
                    shutil.rmtree(build)
        except OSError as problem:
            log.warning("cannot remove the old venvs of %s: %s; remove them by hand", model, problem)

    def _old_builds(self, model: str) -> list[Path]:
        try:
            current = (self._root / model).readlink().name
        except OSError:
            current = ""
        own = re.compile(re.escape(model) + r"-[0-9a-f]{12}(-\d+)?")
        builds = self._root / ".builds"
        found = builds.iterdir() if builds.is_dir() else ()
        return [build for build in found if build.name != current and own.fullmatch(build.name)]

    def _model_lock(self, model: str) -> Path:
        return self._root / ".locks" / f"model-{model}"


def _stamp(build: Path) -> dict[str, Any]:
    try:
        stamp = json.loads((build / STAMP).read_bytes())
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def _write_stamp(build: Path, model: str, spec: Venv, fingerprint: str) -> None:
    facts = {"model": model, "fingerprint": fingerprint, "requirements": spec.requirements}
    (build / STAMP).unlink(missing_ok=True)  # of a clone: the other one's, by hard link
    with (build / STAMP).open("x") as file:
        file.write(json.dumps(facts) + "\n")
        file.flush()
        os.fsync(file.fileno())


class _Stopped(Exception):
    """Not an OSError, which copytree would keep for later and go on."""


async def _clone(source: Path, target: Path, report: Report) -> None:
    """Hard links of all files of `source`; on any trouble nothing, and the caller installs instead."""
    stop = threading.Event()

    def link(file: str, copy: str) -> None:
        if stop.is_set():
            raise _Stopped
        os.link(file, copy)

    try:
        await in_thread(
            lambda: shutil.copytree(source, target, symlinks=True, copy_function=link), report, stop
        )
        if (source / STAMP).exists():
            return
    except OSError:  # another file system, or its owner collected it meanwhile
        pass
    await _remove(target, report)


async def _remove(tree: Path, report: Report) -> None:
    if tree.exists():
        await in_thread(lambda: shutil.rmtree(tree, ignore_errors=True), report)


def _check(name: str, build: Path) -> None:
    if not (build / EXECUTABLE).is_file():
        raise ProvisionError(
            f"cannot use the venv of {name}: its requirements install no {EXECUTABLE}; add vllm to them"
        )


def _add_alias(build: Path, installed: str, alias: str) -> None:
    """Let importlib.metadata know a distribution by a second name, with a version that says +cpu.

    vLLM takes its platform from the version: it must contain "cpu".
    """
    pattern = f"lib/python*/site-packages/{installed.replace('-', '_')}-*.dist-info"
    for metadata in build.glob(pattern):
        version = metadata.name.removesuffix(".dist-info").split("-")[1].partition("+")[0] + "+cpu"
        directory = metadata.parent / f"{alias}-{version}.dist-info"
        directory.mkdir(exist_ok=True)
        (directory / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {alias}\nVersion: {version}\n")
        (directory / "INSTALLER").write_text("llm-supervisor\n")
        (directory / "RECORD").write_text("")


def _switch(link: Path, build: Path) -> None:
    """Point the symlink at the build, in one step."""
    new = link.with_name(f".{link.name}.new")
    new.unlink(missing_ok=True)
    new.symlink_to(Path(".builds", build.name))
    new.replace(link)


def _free_name(directory: Path, name: str) -> Path:
    """`name`, or `name-2`, … : a damaged build may still be under a live engine, so it keeps its name."""
    candidate, number = directory / name, 1
    while candidate.exists():
        number += 1
        candidate = directory / f"{name}-{number}"
    return candidate


def _backend(name: str | None) -> list[str]:
    return [] if name is None else ["--torch-backend", name]


def _free(path: Path) -> str:
    """How much is free where `path` is, or will be."""
    place = next(each for each in (path, *path.parents) if each.exists())
    return f"{shutil.disk_usage(place).free / 2**30:.1f} GiB on {path}"


def _device(path: Path) -> int:
    """The file system that holds `path`, or will."""
    while not path.exists():
        path = path.parent
    return path.stat().st_dev
