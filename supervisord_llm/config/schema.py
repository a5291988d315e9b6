"""The JSON Schema (draft 7) of the configuration, for editors."""

from supervisord_llm.config.keys.root import ROOT
from supervisord_llm.config.kinds import JsonSchema, Key, Kind, ListOf, MapOf, OneOf, Table, Value


def json_schema() -> JsonSchema:
    """The schema of config.toml and of each drop-in.

    Nothing is `required` in it: a drop-in may hold one key of a table that another file begins. Settings that
    are not supported yet are there, with a description that says so, and match no value.
    """
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "llm-supervisor",
        **_fragment(ROOT),
    }


def _fragment(kind: Kind) -> JsonSchema:
    match kind:
        case Value():
            return dict(kind.schema)
        case ListOf():
            return {"type": "array", "items": _fragment(kind.item)}
        case OneOf():
            return {"anyOf": [_fragment(option) for option in kind.options]}
        case MapOf():
            names = dict(kind.name.schema)
            return {"type": "object", "propertyNames": names, "additionalProperties": _fragment(kind.item)}
        case Table():
            return {
                "type": "object",
                "description": kind.doc,
                "additionalProperties": False,
                "properties": {key.name: _property(key) for key in kind.keys},
            }


def _property(key: Key) -> JsonSchema:
    if not key.supported:
        return {"title": key.name, "description": f"not supported yet: {key.doc}", "not": {}}
    described: JsonSchema = {**_fragment(key.kind), "title": key.name, "description": key.doc}
    if key.default is not None:
        described["default"] = key.default
    return described
