"""What must hold within [models.NAME] request: rules that cannot both apply are mistakes."""

from collections.abc import Iterator

from supervisord_llm.config.document import Report
from supervisord_llm.config.keys.requests import LIMITS, OWN_FIELDS, TOOLS, Measure
from supervisord_llm.config.model import Config, Model, RequestPolicy
from supervisord_llm.config.problem import KeyPath, quoted


def check_requests(report: Report, config: Config) -> None:
    """Report rules that contradict each other, and a mode without its prompt."""
    for model in config.models.values():
        path = ("models", model.name)
        if model.system_prompt is None and model.system_prompt_mode != "default":
            report.add(
                (*path, "system_prompt_mode"),
                "cannot put in front what is not there",
                hint="add system_prompt, or remove it",
            )
        if TOOLS in model.request.force and report.clean((*path, "request", "force"), (*path, "engine")):
            _check_tools(report, model)
        if report.clean((*path, "request")):
            for key, field, found, way_out in _contradictions(model.request):
                at: KeyPath = (*path, "request", key)
                at = at if key in ("strip", "allow") else (*at, field)
                report.add(at, f"cannot use {quoted(field)} here: {found}", hint=way_out)


def _check_tools(report: Report, model: Model) -> None:
    """Tools that are forced are those that an API elsewhere runs by itself."""
    path: KeyPath = ("models", model.name, "request", "force", TOOLS)
    found = f"cannot force {quoted(TOOLS)}: "
    forced = model.request.force[TOOLS]
    if model.engine != "remote":
        why, way_out = OWN_FIELDS[TOOLS]
        report.add(path, found + why, hint=way_out)
    elif model.tools == "strip":
        report.add(path, found + "tools are dropped", hint='remove them, or tools = "strip"')
    elif not isinstance(forced, list) or not all(isinstance(tool, dict) for tool in forced):
        report.add(path, found + "it is no list of tools", '[{ type = "web_search" }] or the like')


def _contradictions(rules: RequestPolicy) -> Iterator[tuple[str, str, str, str]]:
    """(key, field, why, way out)"""
    for field in rules.default:
        if field in rules.force:
            yield "default", field, "it is forced, so no default ever applies", "remove one of them"
    for field in rules.strip:
        if field in rules.force:
            yield "strip", field, "it is forced, which drops the client's", "remove it from strip"
        elif field in rules.default:
            yield "strip", field, "with a default that is what force does", "write it in force alone"
        elif field in rules.min or field in rules.max:
            yield "strip", field, "what is dropped has no min or max", "remove one of them"
        elif field in rules.allow:
            yield "allow", field, "it is dropped", "remove it from strip or allow"
    for field, least in rules.min.items():
        limit = LIMITS.get(field)
        if limit is not None and limit.measure is not Measure.VALUE:
            yield "min", field, f"{limit.measure} have a max alone", "remove it"
        elif field in rules.max and least > rules.max[field]:
            yield "min", field, f"it is above the max, {rules.max[field]:g}", "make it smaller"
    yield from _out_of_bounds(rules)


def _out_of_bounds(rules: RequestPolicy) -> Iterator[tuple[str, str, str, str]]:
    for key, values in (("default", rules.default), ("force", rules.force)):
        for field, value in values.items():
            least, most = rules.min.get(field), rules.max.get(field)
            if (least is None and most is None) or (
                field in LIMITS and LIMITS[field].measure is not Measure.VALUE
            ):
                continue
            if not isinstance(value, int | float) or isinstance(value, bool):
                yield key, field, "it has a min or max and is no number", "write a number"
            elif least is not None and value < least:
                yield key, field, f"it is below its min, {least:g}", "write more, or lower the min"
            elif most is not None and value > most:
                yield key, field, f"it is above its max, {most:g}", "write less, or raise the max"
