"""All rules for the requests of one model, in the order in which they apply."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import msgspec

from supervisord_llm.config.model import Model, RequestPolicy
from supervisord_llm.core.sizing.serving import whole
from supervisord_llm.gateway.policy import batches, guard, system, tools, usage, values
from supervisord_llm.gateway.policy.fields import Fields
from supervisord_llm.gateway.target import POSTED, STREAMING

NOT_ASKING = frozenset({"tokenize", "detokenize", "messages/count_tokens"})
"""Endpoints that answer about a text and not from the model, so that values for it mean nothing."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What `request`, `tools` and `system_prompt` of a model say."""

    model: str
    rules: RequestPolicy
    prompt: str | None
    always: bool
    strips_tools: bool
    """Whatever the engine can do."""
    needs_parser: bool
    """Tools are for engines that can read calls of them."""

    @property
    def changes_values(self) -> bool:
        rules = self.rules
        return bool(rules.default or rules.force or rules.strip or rules.min or rules.max)


@dataclass(slots=True)
class Shaped:
    """A request as the engine gets it; `fields` may be changed further."""

    fields: Fields
    is_changed: bool = False
    streams: bool = False
    """Its answer is a stream whose usage is counted."""
    hides_usage: bool = False
    """The client did not ask for the usage that the engine will tell."""
    offers_tools: bool = False
    max_batch: int | None = None

    def bodies(self, original: bytes) -> list[bytes]:
        """What to send: one body, or several whose answers become one."""
        if self.max_batch is not None and (parts := batches.split(self.fields, self.max_batch)):
            return parts
        return [msgspec.json.encode(self.fields) if self.is_changed else original]


def policy_of(model: Model) -> Policy:
    """The model's policy, its limit on tokens no higher than the context that it is given."""
    rules = model.request
    context = model.max_model_len or whole(model.flags.get("max-model-len"))
    most = rules.max.get("max_tokens")
    if context is not None and most is not None and most > context:
        rules = replace(rules, max={**rules.max, "max_tokens": context})
    return Policy(
        model=model.name,
        rules=rules,
        prompt=model.system_prompt,
        always=model.system_prompt_mode == "always",
        strips_tools=model.tools == "strip",
        needs_parser=model.tools == "auto" and model.engine == "vllm",
    )


def shape(policy: Policy, endpoint: str, fields: Fields, ours: Mapping[str, msgspec.Raw]) -> Shaped:
    """A request within the rules. `fields` are left as they are; `ours` win over them, whatever the rules.

    Raises:
        Refused: `invalid_request`, it asks for what it may not; `param` is the field.
    """
    rules = policy.rules
    own = {name: raw for name, raw in fields.items() if name not in ours}
    has_values = policy.changes_values and endpoint in POSTED - NOT_ASKING
    if has_values:
        values.drop(own, rules)
    guard.check(own, endpoint, rules)
    if has_values:
        values.set_values(own, endpoint, rules)
    if policy.prompt is not None:
        system.put_in_front(own, endpoint, policy.prompt, always=policy.always)
    own.update(ours)
    may_differ = has_values or policy.prompt is not None or bool(ours)
    shaped = Shaped(own, is_changed=may_differ and own != fields)
    if endpoint in tools.ENDPOINTS and tools.offered(own):
        _look_at_tools(policy, shaped)
    if endpoint in STREAMING and bytes(own.get("stream", b"")) == b"true":
        shaped.streams = True
        shaped.hides_usage = endpoint in usage.ENDPOINTS and usage.ask(own)
        shaped.is_changed |= shaped.hides_usage
    if endpoint == "embeddings":
        shaped.max_batch = rules.max_batch
    return shaped


def _look_at_tools(policy: Policy, shaped: Shaped) -> None:
    if tools.is_empty(shaped.fields):
        tools.drop(shaped.fields, "the request offers none in `tools`")
        shaped.is_changed = True
    elif policy.strips_tools:
        drop_tools(policy, shaped)
    else:
        shaped.offers_tools = True


def drop_tools(policy: Policy, shaped: Shaped) -> None:
    """Take out the tools of a request whose model cannot call them.

    Raises:
        Refused: `invalid_request`, the client insists on a call.
    """
    if policy.strips_tools:
        why = f'tools are dropped for {policy.model!r}; have the operator set tools = "auto" for it'
    else:
        why = (
            f"the engine of {policy.model!r} has no parser for calls; have the operator set the flags "
            "enable-auto-tool-choice and tool-call-parser for it"
        )
    tools.drop(shaped.fields, why)
    shaped.is_changed = True
