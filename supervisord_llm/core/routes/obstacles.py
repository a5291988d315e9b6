"""What keeps a model from taking a request of a route, and how that is told where it keeps all of them."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from supervisord_llm.core.routes.route import Ask, NoMember, Standing

SLACK = 0.2
"""By what share an estimate of tokens may be wrong."""

CONTEXT = "context_length_exceeded"


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why not this one."""

    name: str
    short: str
    """A few words of ASCII."""
    message: str
    """A sentence that begins with "cannot"; "": `short` says it all."""
    code: str
    retry_after_s: float | None = None


def obstacle(name: str, ask: Ask, standing: Standing | None, tried: Collection[str]) -> Standing | Obstacle:
    """What is in the way; the model's standing if nothing is."""
    if standing is None:
        return Obstacle(name, "not configured", f"cannot find the model {name}", "model_not_found")
    if standing.context is not None and needed(ask, name) > standing.context:
        return Obstacle(name, f"holds {standing.context} tokens", "", CONTEXT)
    if name in tried:
        return Obstacle(name, "has just failed", "", "start_failed")
    if standing.unable:
        short = f"cannot take it now ({standing.code})"
        return Obstacle(name, short, standing.unable, standing.code, standing.retry_after_s)
    return standing


def needed(ask: Ask, model: str) -> int:
    """Tokens of the model's context."""
    return ask.tokens_by.get(model, ask.tokens) + ask.answer_tokens


def refusal(route: str, ask: Ask, obstacles: Sequence[Obstacle]) -> NoMember:
    """What to tell where there is an obstacle to every member. The code is that of the soonest to be over."""
    if all(each.code == CONTEXT for each in obstacles):
        return _too_long(route, ask, obstacles)
    passing = [each for each in obstacles if each.code != CONTEXT]
    soonest = min(passing, key=lambda each: (not each.message, each.retry_after_s or float("inf")))
    told = soonest.message.removeprefix("cannot serve now: ") or f"{soonest.name} {soonest.short}"
    others = ", ".join(f"{each.name}: {each.short}" for each in obstacles if each is not soonest)
    return NoMember(
        code=soonest.code,
        message=f"cannot serve {route}: {told}" + (f" (and {others})" if others else ""),
        retry_after_s=soonest.retry_after_s,
    )


def _too_long(route: str, ask: Ask, obstacles: Sequence[Obstacle]) -> NoMember:
    about = "" if ask.is_exact else "about "
    answer = f" and its answer may have {ask.answer_tokens}" if ask.answer_tokens else ""
    way_out = "send less, or ask for fewer max_tokens" if ask.answer_tokens else "send less"
    holds = ", ".join(f"{each.name} {each.short}" for each in obstacles)
    message = f"cannot serve {route}: the prompt has {about}{ask.tokens} tokens{answer}; {holds}: {way_out}"
    return NoMember(code=CONTEXT, message=message, param="messages")
