"""From the values of [routes] to routes. Names are still as written; see parse.py for aliases."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import time
from typing import Any

from supervisord_llm.config.document import Report
from supervisord_llm.config.problem import KeyPath
from supervisord_llm.core.calendar import EVERY_DAY, Hours
from supervisord_llm.core.routes.route import Choice, Classifier, Route, Rule, Sticky

Values = dict[str, Any]


def read_routes(report: Report, routes: Mapping[str, Values]) -> dict[str, Route]:
    """The routes by name. What is missing in them is reported."""
    return {name: _route(report, ("routes", name), name, values) for name, values in routes.items()}


def _route(report: Report, path: KeyPath, name: str, values: Values) -> Route:
    if not values.get("members") and report.clean((*path, "members")):
        found = "cannot choose without members"
        report.add(path if "members" not in values else (*path, "members"), found, 'members = ["…", "…"]')
    classifier = values.get("classifier")
    return Route(
        name=name,
        members=values.get("members", ()),
        rules=tuple(
            _rule(report, (*path, "rules", index), rule) for index, rule in enumerate(values.get("rules", ()))
        ),
        policy=Choice(values.get("policy", Choice.LEAST_BUSY)),
        sticky=Sticky(values.get("sticky", Sticky.NONE)),
        spillover=values.get("spillover"),
        classifier=None if classifier is None else _classifier(report, (*path, "classifier"), classifier),
        path=values.get("path", f"/{name}"),
        aliases=values.get("aliases", ()),
    )


def _rule(report: Report, path: KeyPath, values: Values) -> Rule:
    if "use" not in values and report.clean((*path, "use")):
        report.add(path, "cannot tell what serves it", 'use = "…", a model or route')
    if values.keys() <= {"use"} and report.clean(path):
        found = "cannot tell when it applies: it would take every request"
        report.add(path, found, hint="add what it is about, such as tokens_over, or remove it and see policy")
    for key in ("client", "header", "endpoint"):
        if key in values and not values[key] and report.clean((*path, key)):
            report.add((*path, key), f"cannot tell which {key} is meant", hint="name one, or remove the key")
    return Rule(
        use=values.get("use", ""),
        tokens_over=values.get("tokens_over"),
        clients=_several(values.get("client", ())),
        headers=values.get("header", {}),
        endpoints=_several(values.get("endpoint", ())),
        tools=values.get("tools"),
        images=values.get("images"),
        hours=_hours(report, path, values),
    )


def _several(written: str | tuple[str, ...]) -> tuple[str, ...]:
    return (written,) if isinstance(written, str) else written


def _hours(report: Report, path: KeyPath, values: Values) -> Hours | None:
    """From midnight to midnight, where there are only days."""
    if not values.keys() & {"from", "to", "days"}:
        return None
    missing = [end for end in ("from", "to") if end not in values]
    if len(missing) == 1 and report.clean((*path, missing[0])):
        there = "to" if missing == ["from"] else "from"
        report.add((*path, there), "cannot tell the hours by one end", f'{missing[0]} = "…" as well')
    start, end, days = values.get("from", time(0)), values.get("to", time(0)), values.get("days", EVERY_DAY)
    if not missing and start == end != time(0):
        found = "cannot tell a whole day from none: it ends when it begins"
        report.add((*path, "to"), found, hint="remove from and to for a whole day")
    if not days:
        report.add((*path, "days"), "cannot apply on no day", "at least one day")
    return Hours(start=start, end=end, days=frozenset(days))


def _classifier(report: Report, path: KeyPath, values: Values) -> Classifier:
    """What is missing is empty, so that the rest can be judged."""
    ways = {
        "model": 'model = "…", a small one',
        "labels": 'labels = { simple = "…", hard = "…" }',
        "fallback": 'fallback = "…", a model or route',
    }
    for key, way in ways.items():
        if not values.get(key) and report.clean((*path, key)):
            report.add((*path, key) if key in values else path, f"cannot classify without {key}", way)
    return Classifier(**{"model": "", "labels": {}, "fallback": "", **values})


def with_names(route: Route, names: Mapping[str, str]) -> Route:
    """With the names of models and routes in place of aliases. All that it names is there."""
    classifier = route.classifier
    if classifier is not None:
        labels = {label: names[target] for label, target in classifier.labels.items()}
        model, fallback = names[classifier.model], names[classifier.fallback]
        classifier = replace(classifier, model=model, labels=labels, fallback=fallback)
    return replace(
        route,
        members=tuple(names[member] for member in route.members),
        rules=tuple(replace(rule, use=names[rule.use]) for rule in route.rules),
        classifier=classifier,
    )
