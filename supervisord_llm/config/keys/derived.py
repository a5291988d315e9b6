"""The settings of a model that comes of another: which one it extends, its replicas, whose adapter it is."""

from supervisord_llm.config.kinds import Key, Unreadable, Value
from supervisord_llm.config.values import text

MOST_REPLICAS = 64


def _read_replicas(raw: object) -> int:
    if not isinstance(raw, int) or isinstance(raw, bool) or not 1 <= raw <= MOST_REPLICAS:
        raise Unreadable
    return raw


EXTENDS = text("the name of another model")
REPLICAS = Value(
    accepts=f"a whole number from 1 to {MOST_REPLICAS}",
    schema={"type": "integer", "minimum": 1, "maximum": MOST_REPLICAS},
    read=_read_replicas,
)

DERIVED_KEYS = (
    Key(
        name="extends",
        kind=EXTENDS,
        doc="Another model, whose keys this one has where it does not say otherwise, as with `[defaults]`; "
        "not its `path`, `aliases`, `replicas` and `adapter_of`, nor its `revision` beside another `source`.",
    ),
    Key(
        name="replicas",
        kind=REPLICAS,
        doc="That many engines of this model, named `<name>_<gpu>` by their first GPU, each on GPUs of its "
        "own (without GPUs they are numbered), and a route `<name>` over them (see docs/routing.md). A table "
        "of that name which extends this model has other settings for that one.",
        default_doc="one engine, named as the model",
    ),
    Key(
        name="adapter_of",
        kind=text("the name of another model"),
        doc="The model whose engine serves this one, with the LoRA adapter in `source` (see "
        "docs/engines.md). Such a model has none of the keys of an engine.",
    ),
)

ADAPTER_KEYS = frozenset(
    {
        *("extends", "adapter_of", "source", "revision", "path", "aliases"),
        *("system_prompt", "system_prompt_mode", "request", "tools"),
    }
)
"""Keys of a model that an adapter has; the others are those of its base's engine."""
