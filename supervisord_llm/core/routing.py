"""Which member of a route serves a request. Pure: everything it may know of a request is an `Ask`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from supervisord_llm.core.calendar import Hours


class Choice(StrEnum):
    """[routes.NAME] policy: how members are told apart where no rule applies."""

    LEAST_BUSY = "least-busy"
    ROUND_ROBIN = "round-robin"
    WARM = "warm"
    CLASSIFIER = "classifier"


class Sticky(StrEnum):
    """[routes.NAME] sticky: whose requests stay with one member, so that its prefix cache serves them."""

    NONE = "none"
    CLIENT = "client"
    SESSION = "session"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One of a route's rules: it applies where all that it names does. Patterns are fnmatch's."""

    use: str
    """A model or another route."""
    tokens_over: int | None = None
    clients: tuple[str, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    """Name -> pattern over the value; "*" asks only that it is there."""
    endpoints: tuple[str, ...] = ()
    """Patterns over an engine's endpoints ("chat/completions")."""
    tools: bool | None = None
    images: bool | None = None
    hours: Hours | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Classifier:
    """[routes.NAME] classifier: a small model that says what a conversation is about."""

    model: str
    labels: Mapping[str, str]
    """Label -> model or route."""
    fallback: str
    """Where the model does not answer in time, or is not up."""
    prompt: str | None = None
    """What it is told before the conversation; None: a text of ours that lists the labels."""
    timeout_s: float = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """[routes.NAME]: a virtual model."""

    name: str
    members: tuple[str, ...]
    """Models, in the order in which they are preferred where nothing else tells them apart."""
    rules: tuple[Rule, ...] = ()
    policy: Choice = Choice.LEAST_BUSY
    sticky: Sticky = Sticky.NONE
    spillover: int | None = None
    """Requests in a member's hands above which the next one is preferred; None: no such number."""
    classifier: Classifier | None = None
    path: str | None = None
    aliases: tuple[str, ...] = ()
