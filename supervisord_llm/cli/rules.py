"""What `check` says of the rules of routes: those by which no request is ever served."""

from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase

from supervisord_llm.cli.host import Fact
from supervisord_llm.config.model import Config
from supervisord_llm.config.problem import did_you_mean, listing, quoted
from supervisord_llm.core.routes.reach import models_of
from supervisord_llm.core.routes.route import Rule
from supervisord_llm.gateway.target import POSTED

ENDPOINTS = POSTED | {"realtime", "responses/id", "responses/id/cancel"}


def rules(config: Config, max_model_len: Callable[[str], int | None]) -> Iterator[Fact]:
    """`max_model_len`: tokens of context that a model holds; None where that is not known."""
    opened = {path.partition(" ")[2] for model in config.models.values() for path in model.request.opened}
    endpoints = ENDPOINTS | {path.removeprefix("/v1/").removeprefix("/") for path in opened}
    for route in config.routes.values():
        for index, rule in enumerate(route.rules):
            where = f"routes.{route.name}.rules[{index}]"
            patterns = rule.endpoints
            if patterns and not any(fnmatchcase(each, one) for each in endpoints for one in patterns):
                near = did_you_mean(patterns[0], endpoints)
                text = f"{listing(map(quoted, patterns))} matches no endpoint"
                yield Fact("hint", f"{where}.endpoint", f"{text}; {near}" if near else text)
            if text := _too_short(config, rule, max_model_len):
                yield Fact("hint", f"{where}.tokens_over", text)


def _too_short(config: Config, rule: Rule, max_model_len: Callable[[str], int | None]) -> str:
    """Why nothing that the rule is about fits what it leads to; "" where something may."""
    models = models_of(rule.use, config.routes) if rule.use in config.routes else (rule.use,)
    lengths = [max_model_len(model) for model in models]
    longest = max((length for length in lengths if length is not None), default=0)
    if rule.tokens_over is None or None in lengths or longest > rule.tokens_over:
        return ""
    return (
        f"{rule.use} holds {longest} tokens, and never gets a prompt of more than {rule.tokens_over}: "
        "lower it, or use a model with a longer context"
    )
