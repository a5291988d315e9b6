"""A route as a value, and all that the choice of one of its members may know and answer. See pick.py."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from supervisord_llm.core.calendar import Hours
from supervisord_llm.core.state import State


class Choice(StrEnum):
    """[routes.NAME] policy: how members are told apart where no rule applies; see pick.py."""

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
    """Name in lower case -> pattern over the value; "*" asks only that it is there."""
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
    """Where the model does not answer in time, or is not up: a model or route."""
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
    """A member with so many requests in hand is passed over while another has fewer; None: no limit."""
    classifier: Classifier | None = None
    path: str | None = None
    aliases: tuple[str, ...] = ()

    @property
    def own(self) -> tuple[str, ...]:
        """What a client or session may stay with. Where a rule sent it, it is sent by that rule alone."""
        if self.classifier is None:
            return self.members
        return (*self.members, *self.classifier.labels.values(), self.classifier.fallback)

    @property
    def targets(self) -> tuple[str, ...]:
        """All that it may lead to in one step, members first, each once: models and routes."""
        return tuple(dict.fromkeys((*self.own, *(rule.use for rule in self.rules))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """All that may be known of a request."""

    tokens: int = 0
    """Of its prompt."""
    is_exact: bool = False
    """Whether `tokens` was counted, rather than estimated: by one engine, which speaks for the others."""
    tokens_by: Mapping[str, int] = field(default_factory=dict)
    """Model -> the estimate of what it finds in the prompt, where that may differ."""
    least_tokens: int = 0
    """What the prompt has beyond doubt, where `tokens` is an estimate."""
    answer_tokens: int = 0
    """The most that it wants answered; 0: it does not say."""
    client: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    """By name in lower case, or any mapping that knows no case."""
    endpoint: str = ""
    """An engine's: "chat/completions"."""
    tools: bool = False
    images: bool = False
    session: str = ""
    """What the requests of one conversation have in common; "": not known."""
    local: datetime | None = None
    """Now, aware, in the zone that hours are meant in; None: rules with hours do not apply."""
    labels: Mapping[str, str | None] = field(default_factory=dict)
    """Route -> what its classifier said of the conversation; None: it did not answer, or nothing it may."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a model stands, as far as a route wants to know."""

    name: str
    state: State = State.READY
    load: int = 0
    """Requests in hand: leases and those that wait."""
    max_concurrent: int | None = None
    context: int | None = None
    """Tokens that prompt and answer may have together; None: not known."""
    evicts: bool = False
    """Whether it can start, or wake, only once another engine makes room."""
    unable: str = ""
    """Why it cannot take requests now, a sentence for people that begins with "cannot"; "": it can."""
    code: str = "start_failed"
    """The error's code where it is `unable`."""
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pick:
    """The model that serves the request."""

    member: str
    reason: str
    """One sentence for people: printable ASCII, at most REASON_CHARS, and nothing that a client wrote."""
    hops: Mapping[str, str]
    """Route -> the model or route that it chose, outermost first: what `stuck` is to say of them next time,
    and the routes whose `turns` have moved on."""
    is_doubtful: bool = False
    """By the estimate, which may be wrong, nobody could hold the prompt: an exact count would tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoMember:
    """Nothing of the route can serve the request: the refusal."""

    code: str
    message: str
    retry_after_s: float | None = None
    param: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Unlabelled:
    """It is for the classifier of this route to say: ask it, put its word into `Ask.labels`, pick again."""

    route: str
