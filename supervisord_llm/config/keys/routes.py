"""The keys of [routes.NAME]: its members, its rules and its classifier."""

from supervisord_llm.config.keys.clients import ENDPOINT_PATTERN
from supervisord_llm.config.keys.models import ALIASES, PATH_PREFIX
from supervisord_llm.config.keys.schedule import END, ON_DAYS, START
from supervisord_llm.config.kinds import Key, ListOf, MapOf, OneOf, Table, Unreadable
from supervisord_llm.config.values import BOOL, POSITIVE_DURATION, choice, names, text, whole

SECRET_HEADERS = ("authorization", "x-api-key", "api-key", "cookie", "proxy-authorization")
"""No rule is about them: whoever reads the configuration would read keys."""

TARGET = text("the name or an alias of a model or route")


def _read_header(name: str) -> str:
    if name.lower() in SECRET_HEADERS:
        raise Unreadable("it holds a key", "name the client: see client")
    return name.lower()


HEADER = names(
    "the name of a header such as X-Team",
    r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}",
    _read_header,
    refused={spelling for name in SECRET_HEADERS for spelling in (name, name.title())},
)
LABEL = names("a label of up to 64 letters, digits, spaces, _ and -", r"[A-Za-z0-9][A-Za-z0-9 _-]{0,63}")
CLIENT_PATTERN = text('the name of a client, or a pattern such as "n8n-*"')

RULE = Table(
    doc="Where all that a rule names is true of a request, its `use` serves it. The first such rule counts; "
    "one whose `use` cannot take the request is passed over.",
    keys=(
        Key(name="use", kind=TARGET, required=True, doc="The model or route that serves it."),
        Key(name="tokens_over", kind=whole(1), doc="Its prompt has more tokens than this."),
        Key(
            name="client",
            kind=OneOf((CLIENT_PATTERN, ListOf(CLIENT_PATTERN))),
            doc="It comes from this client, or one of these.",
        ),
        Key(
            name="header",
            kind=MapOf(
                named="header",
                name=HEADER,
                item=text('a pattern over its value, such as "batch-*", or "*" for any'),
                accepts='a table such as { X-Team = "search" }',
            ),
            doc="It has these headers.",
        ),
        Key(
            name="endpoint",
            kind=OneOf((ENDPOINT_PATTERN, ListOf(ENDPOINT_PATTERN))),
            doc="It is for this endpoint, or one of these.",
        ),
        Key(name="tools", kind=BOOL, doc="Whether it offers tools."),
        Key(name="images", kind=BOOL, doc="Whether there are images in it."),
        Key(
            name="from",
            kind=START,
            doc="It comes at this time of day or later, in the time zone of `[schedule]`.",
        ),
        Key(name="to", kind=END, doc="It comes before this time; past midnight if not after `from`."),
        Key(name="days", kind=ON_DAYS, doc="It comes on these days; past midnight, that of `from` counts."),
    ),
)
CLASSIFIER = Table(
    doc='A model that says what a conversation is about (policy = "classifier").',
    keys=(
        Key(
            name="model",
            kind=text("the name or an alias of a model"),
            required=True,
            doc="The model that is asked: a small one that is quick.",
        ),
        Key(
            name="labels",
            kind=MapOf(
                named="label",
                name=LABEL,
                item=TARGET,
                accepts='a table such as { simple = "small", hard = "large" }',
            ),
            required=True,
            doc="What it may say, and which model or route serves the request then.",
        ),
        Key(
            name="fallback",
            kind=TARGET,
            required=True,
            doc="The model or route that serves the request where it says nothing in time.",
        ),
        Key(
            name="prompt",
            kind=text("a text", r"[\s\S]*\S[\s\S]*"),
            doc="What it is told before the conversation.",
            default_doc="a text that lists the labels",
        ),
        Key(name="timeout", kind=POSITIVE_DURATION, default="2s", doc="How long it may take."),
    ),
)
ROUTE = Table(
    doc="A model that exists by name alone: each request is served by one of several others, see "
    "docs/routing.md. Members that cannot take the request are left out; then `rules` decide, then `sticky`, "
    "then `policy`.",
    keys=(
        Key(
            name="members",
            kind=ListOf(text("the name or an alias of a model")),
            required=True,
            doc="The models that it chooses from. Of equals the first is preferred.",
        ),
        Key(
            name="rules", kind=ListOf(RULE), default=[], doc="Rules, of which the first that applies decides."
        ),
        Key(
            name="policy",
            kind=choice("least-busy", "round-robin", "warm", "classifier"),
            default="least-busy",
            doc="`least-busy`: the member with the fewest requests in hand; `round-robin`: each in "
            "turn; `warm`: one that runs before one that is to start; `classifier`: what `classifier` says.",
        ),
        Key(
            name="sticky",
            kind=choice("none", "client", "session"),
            default="none",
            doc="Whose requests stay with one member, so that its prefix cache serves them: those of a "
            "client, or of a conversation.",
        ),
        Key(
            name="spillover",
            kind=whole(1),
            doc="A member with that many requests in hand is passed over while another has fewer.",
            default_doc="no limit",
        ),
        Key(name="classifier", kind=CLASSIFIER, doc=CLASSIFIER.doc),
        Key(
            name="path",
            kind=PATH_PREFIX,
            default_doc='`"/<name>"`',
            doc="The prefix under which this route alone answers; `false` for none.",
        ),
        Key(name="aliases", kind=ALIASES, default=[], doc="Further names that requests may use."),
    ),
)
