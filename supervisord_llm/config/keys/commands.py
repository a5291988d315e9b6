"""The settings of a model that another server than vLLM serves, engine = "command"."""

from supervisord_llm.config.kinds import Key, ListOf, Value
from supervisord_llm.config.template import read_word
from supervisord_llm.config.values import text, whole

WORD = Value(
    accepts='a string such as "--port"',
    schema={"type": "string", "pattern": r"^(?:[^{}]|\{\{|\}\}|\{(?:port|socket|model|gpus)\})*$"},
    read=read_word,
    secret=True,  # it may be the value of a flag such as --api-key
)

COMMAND_KEYS = (
    Key(
        name="command",
        kind=ListOf(WORD),
        doc='The server and its arguments (`engine = "command"`), run as they are and without a shell. '
        "`{port}` is a free port on 127.0.0.1, `{socket}` the path of a unix socket; one of the two is where "
        "the server is to listen. `{model}` is the model's name, `{gpus}` its GPUs as `0,1`; `{{` and `}}` "
        "are braces.",
    ),
    Key(
        name="health",
        kind=text('a path such as "/health"', r"/[!-~]*"),
        default="/health",
        doc="Where that server answers with a status of 200 to 299 once it is ready, and not before.",
    ),
    Key(
        name="max_model_len",
        kind=whole(1),
        doc="Tokens of context that it holds, as `/v1/models` tells clients. For vLLM, the flag "
        "`max-model-len` says it.",
        default_doc="not known",
    ),
)
"""Keys of [models.NAME] that such a model has beside those of every model."""
