"""The runtime's Provisioner: a model's venv and weights, made present before its launch.

Only vLLM has them. For models of other engines nothing is built, downloaded or estimated."""

import asyncio
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from supervisord_llm.config.model import Config, Model
from supervisord_llm.core.card import Card
from supervisord_llm.core.estimate import Estimate
from supervisord_llm.errors import ProvisionError
from supervisord_llm.provision import recipes
from supervisord_llm.provision.adapters import made_for_another
from supervisord_llm.provision.estimates import Estimates
from supervisord_llm.provision.fetch_unit import VARIABLE, FetchUnit
from supervisord_llm.provision.venvs import Venvs
from supervisord_llm.provision.weights import Weights, local_path
from supervisord_llm.runtime.ports import Progress, Report

log = logging.getLogger(__name__)

Preflight = Callable[[Model, Path | None, Path | None, Path], None]
"""(model, weights, venv, cache): raises ProvisionError for what would fail a launch. Runs in a thread.

Weights and venv are None where another engine than vLLM serves the model."""


class Provisioner:
    """Venvs and weights of the configured models."""

    def __init__(
        self,
        config: Config,
        *,
        cuda: bool,
        preflight: Preflight | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        """
        Args:
            cuda: whether this host has a GPU, for models that configure no venv.
            environ: what uv and the download see a part of; unless given, our own environment. With
                LLM_SUPERVISOR_FETCH in it, `prepare` has another unit do both.
        """
        environ = os.environ if environ is None else environ
        folder = config.files[0].parent if config.files else None
        self._config = config
        self._venvs = Venvs(config.paths, cuda=cuda, environ=environ)
        self._weights = Weights(config.paths, environ, folder)
        socket = environ.get(VARIABLE)
        self._fetch_unit = FetchUnit(Path(socket)) if socket else None
        self._estimates = Estimates(self._weights, environ, cuda=cuda, may_ask=not socket)
        self._preflight = preflight

    def configure(self, config: Config, *, cuda: bool | None = None) -> None:
        """Take the models of a reloaded configuration, and whether there is a GPU now (None: as before).

        A change of its paths needs a restart.
        """
        self._config = config
        if cuda is not None:
            self._venvs.cuda = self._estimates.cuda = cuda

    async def prepare(self, model: str, report: Report) -> None:
        """Make the venv and the weights present, then run the preflight.

        With nothing missing this is a few file look-ups: no process, no network.

        Raises:
            ProvisionError: what is missing or wrong, in one sentence with a way out.
        """
        wanted = self._model(model)
        if wanted.engine != "vllm":
            if self._preflight is not None:
                await asyncio.to_thread(self._preflight, wanted, None, None, self._config.paths.cache)
            return
        if not self._has_all(wanted):
            await self._obtain(wanted, report)
        wanted, venv, weights = self.located(model), self.venv_of(model), Path(self.weights_of(model))
        # no engine of the model runs now, which `pull` could not know: what it left goes here, too
        await self._venvs.collect(model, _named("venv", report))
        if self._preflight is not None:
            await asyncio.to_thread(self._preflight, wanted, weights, venv, self._config.paths.cache)

    async def pull(self, model: str, report: Report) -> None:
        """Build the venv and download the weights; a model without a revision gets the hub's newest.

        Of an adapter the weights alone: its base has the venv, and is pulled with its adapters.

        Raises:
            ProvisionError: what cannot be had, in one sentence with a way out.
        """
        wanted = self._config.models[model]
        if wanted.adapter_of is None:
            await self._make(wanted, report, renew=True)
        else:
            await self._weights.fetch(wanted, _named("weights", report), renew=True)

    async def fetch(self, model: str, report: Report) -> None:
        """Of venv and weights, make present what the configuration gives no path of.

        Raises:
            ProvisionError: what cannot be had, in one sentence with a way out.
        """
        await self._make(self._model(model), report, renew=False, paths=False)

    def leave(self) -> None:
        """Somebody comes after us, so what another unit fetches for us is no more to be stopped with us."""
        if self._fetch_unit is not None:
            self._fetch_unit.goes_on = True

    def weights_of(self, model: str) -> str:
        """The local directory of the model's weights.

        Raises:
            ProvisionError: they are not (all) there.
        """
        self._provisioned(model)
        if (found := self._weights.find(self._config.models[model])) is None:
            raise ProvisionError(f"cannot find the weights of {model}: run llm-supervisor pull {model}")
        return str(found)

    def located(self, model: str) -> Model:
        """The model with the directories of its adapters as their `source`.

        Raises:
            ProvisionError: they are not (all) there.
        """
        wanted = self._model(model)
        adapters = (replace(each, source=self.weights_of(each.name)) for each in wanted.adapters)
        return replace(wanted, adapters=tuple(adapters))

    def context_length(self, model: str) -> int | None:
        """Tokens of context that the model's weights are made for, or that another engine is said to hold.

        None where they are not here or silent.
        """
        if (wanted := self._of_vllm(model)) is not None:
            return self._weights.context_length(wanted)
        other = self._config.models.get(model)
        return None if other is None else other.max_model_len

    def card(self, model: str) -> Card | None:
        """What the model is for; None where its weights are not here."""
        wanted = self._of_vllm(model)
        return None if wanted is None else self._weights.card(wanted)

    async def estimate(self, model: str) -> Estimate | None:
        """What the model will take of each GPU; None: cannot be told, and `estimate_note` says why.

        From its files in milliseconds; while they are not here the hub is asked, 10 s at most. Never raises.
        """
        wanted = self._of_vllm(model)
        return None if wanted is None else await self._estimates.of(wanted)

    def estimate_local(self, model: str) -> Estimate | None:
        """The same without asking the hub, for who has no event loop. Blocks for milliseconds."""
        wanted = self._of_vllm(model)
        return None if wanted is None else self._estimates.local(wanted)

    def estimate_note(self, model: str) -> str:
        """Why the last estimate could not be told, as a sentence; "" where it could."""
        return self._estimates.note(self._model(model))

    def max_model_len(self, model: str) -> int | None:
        """The context length in force: the flag's, else what vLLM takes from config.json; None: unknown."""
        wanted = self._model(model)
        return self._estimates.max_model_len(wanted) if wanted.engine == "vllm" else wanted.max_model_len

    def suggest_max_model_len(self, model: str, budget_bytes: int) -> int | None:
        """The longest context with which it starts on GPUs of this budget; None: unknown, or none is."""
        wanted = self._of_vllm(model)
        return None if wanted is None else self._estimates.suggest_max_model_len(wanted, budget_bytes)

    def venv_of(self, model: str) -> Path:
        """The directory of the model's venv, with no symlink in between: it never changes while it exists.

        Raises:
            ProvisionError: it is not built.
        """
        if (found := self._venvs.find(self._provisioned(model))) is None:
            raise ProvisionError(f"cannot find the venv of {model}: run llm-supervisor pull {model}")
        return found

    def facts(self, model: str) -> list[str]:
        """What is missing or worth knowing before a start, one sentence each; empty when all is there."""
        wanted = self._model(model)
        if wanted.engine != "vllm":
            return []
        spec = self._venvs.spec(wanted)
        recipe = recipes.recipe_for(spec.requirements)
        pull = f"llm-supervisor pull {model}, or the first request,"
        found = []
        if self._venvs.find(wanted) is None:
            if spec.path is not None:
                found.append(f"the venv {spec.path} has no bin/vllm: install vllm into it")
            else:
                found.append(f"the venv ({', '.join(spec.requirements)}) is not built: {pull} builds it")
                free = shutil.disk_usage(_existing(self._config.paths.state)).free
                if free < recipe.needs_bytes:
                    found.append(
                        f"the venv needs about {recipe.needs_bytes >> 30} GiB and {free / 2**30:.1f} GiB are "
                        f"free on {self._config.paths.state}: free some, or set [paths] state"
                    )
        if recipe.notice:
            found.append(recipe.notice)
        for each in (wanted, *wanted.adapters):
            of = "" if each is wanted else f"the adapter {each.name}: "
            found += [f"{of}{fact}" for fact in self._facts_of_weights(each, pull)]
        notes = (made_for_another(each, wanted, self._weights.find(each)) for each in wanted.adapters)
        return found + [note for note in notes if note]

    def _facts_of_weights(self, model: Model, pull: str) -> list[str]:
        found = []
        if self._weights.find(model) is None:
            if (local := local_path(model)) is not None:
                found.append(f"the weights {local} do not exist: correct source")
            else:
                found.append(f"the weights of {model.source} are not downloaded: {pull} downloads them")
        if local_path(model) is None and model.revision is None:
            commit = self._weights.commit(model)
            pin = f'set revision = "{commit}"' if commit else "set revision"
            found.append(f"{model.source} is not pinned to a commit: {pin} to make every host serve the same")
        return found

    def _model(self, name: str) -> Model:
        """The model whose engine serves it: an adapter has the venv and the context of its base."""
        return self._config.models[self._config.engine_of(name)]

    def _of_vllm(self, name: str) -> Model | None:
        """The same; None where another engine serves it, or it has left the configuration since."""
        model = self._config.models.get(self._config.engine_of(name))
        return model if model is not None and model.engine == "vllm" else None

    def _has_all(self, model: Model) -> bool:
        weights = (self._weights.find(each) for each in (model, *model.adapters))
        return self._venvs.find(model) is not None and all(each is not None for each in weights)

    def _provisioned(self, name: str) -> Model:
        """
        Raises:
            ProvisionError: it has neither weights nor a venv.
        """
        model = self._model(name)
        if model.engine != "vllm":
            raise ProvisionError(f"cannot find weights or a venv of {name}: its engine has none of ours")
        return model

    async def _obtain(self, model: Model, report: Report) -> None:
        """Make what is missing, or have it made."""
        self._venvs.check_path(model)
        for each in (model, *model.adapters):
            self._weights.check_path(each)
        if self._fetch_unit is None:
            await self._make(model, report, renew=False)
            return
        await self._fetch_unit.fetch(model.name, report)
        if not self._has_all(model):
            raise ProvisionError(
                f"cannot use what was fetched for {model.name}: the file of the configuration says something "
                "else by now, or the GPUs have changed; run llm-supervisor reload"
            )

    async def _make(self, model: Model, report: Report, *, renew: bool, paths: bool = True) -> None:
        """All at once, since one waits for a CPU and the other for the network.

        Without `paths`, those of the configuration are not looked at: they may be hidden from this process.
        """
        if model.engine != "vllm":
            return
        spec = self._venvs.spec(model)
        if (notice := recipes.recipe_for(spec.requirements).notice) and self._venvs.find(model) is None:
            log.info("building the venv of %s: %s", model.name, notice)
        try:
            async with asyncio.TaskGroup() as tasks:
                if paths or spec.path is None:
                    build = self._venvs.build(model, _named("venv", report))
                    tasks.create_task(build, name=f"venv of {model.name}")
                for each in (model, *model.adapters):
                    if paths or local_path(each) is None:
                        what = "weights" if each is model else f"adapter {each.name}"
                        fetch = self._weights.fetch(each, _named(what, report), renew=renew)
                        tasks.create_task(fetch, name=f"weights of {each.name}")
        except ExceptionGroup as group:
            if (first := group.subgroup(ProvisionError)) is not None:
                raise first.exceptions[0] from None
            raise


def _named(what: str, report: Report) -> Report:
    def named(step: Progress) -> None:
        report(replace(step, phase=f"{what}: {step.phase}") if step.phase else step)

    return named


def _existing(path: Path) -> Path:
    return next(place for place in (path, *path.parents) if place.exists())
