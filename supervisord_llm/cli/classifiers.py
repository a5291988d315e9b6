"""What `check` says of the classifiers of routes: whether they are up when asked, and what they see."""

from collections.abc import Callable, Iterator

from supervisord_llm.cli.host import Fact
from supervisord_llm.config.model import Config, Model
from supervisord_llm.core.routes.reach import models_of
from supervisord_llm.core.routes.route import Choice, Classifier
from supervisord_llm.gateway.choosing.classifier.question import room_bytes


def classifiers(config: Config, max_model_len: Callable[[str], int | None]) -> Iterator[Fact]:
    """`max_model_len`: tokens of context that a model holds; None where that is not known."""
    for route in config.routes.values():
        if route.policy is not Choice.CLASSIFIER or route.classifier is None:
            continue
        where, model = f"routes.{route.name}.classifier", config.models[route.classifier.model]
        found = [*_absent(config, route.classifier, model), *_short(config, route.classifier, max_model_len)]
        for text in found:
            yield Fact("hint", where, text)
        if not found:
            yield Fact("ok", where, f"{model.name} is asked, and stays up")


def _absent(config: Config, classifier: Classifier, model: Model) -> Iterator[str]:
    if model.engine == "remote":
        return
    base = config.models[config.engine_of(model.name)]
    preloaded = map(config.engine_of, config.server.preload)
    ways = []
    if base.name not in preloaded:
        ways.append(f'add "{base.name}" to `preload` in [server]')
    if not base.keep:
        ways.append(f"set `keep = true` in [models.{base.name}]")
    if ways:
        yield (
            f"{model.name} may be down when it is needed, and requests go to {classifier.fallback} then: "
            f"{' and '.join(ways)}"
        )


def _short(
    config: Config, classifier: Classifier, max_model_len: Callable[[str], int | None]
) -> Iterator[str]:
    own = max_model_len(classifier.model)
    targets = (*classifier.labels.values(), classifier.fallback)
    models = (models_of(name, config.routes) if name in config.routes else (name,) for name in targets)
    lengths = {model: length for several in models for model in several if (length := max_model_len(model))}
    longest = max(lengths, key=lambda model: lengths[model], default="")
    if own is not None and longest and own < lengths[longest]:
        yield (
            f"{classifier.model} holds {own} tokens and {longest} {lengths[longest]}: "
            f"longer conversations are cut for it, to {room_bytes(classifier, own)} bytes"
        )
