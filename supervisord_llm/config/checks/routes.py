"""What must hold within [routes.NAME], and between routes and what they lead to."""

from collections.abc import Iterator
from fnmatch import fnmatchcase

from supervisord_llm.config.checks.names import expect
from supervisord_llm.config.document import Report
from supervisord_llm.config.keys.clients import OWN_SOURCES
from supervisord_llm.config.model import Config
from supervisord_llm.config.problem import KeyPath, listing, quoted
from supervisord_llm.core.routes.route import Choice, Route


def check_routes(report: Report, config: Config) -> None:
    """Report what a route names and what is not there, and what could never be decided."""
    for route in config.routes.values():
        _members(report, config, route)
        for path, target in _targets(route):
            expect(report, config, path, target)
        _classifier(report, config, route)
    _circles(report, config)


def _members(report: Report, config: Config, route: Route) -> None:
    names = config.names
    seen: set[str] = set()
    for index, member in enumerate(route.members):
        path = ("routes", route.name, "members", index)
        name = names.get(member, member)
        if name in config.routes:
            found = f"cannot use the route {quoted(member)} as a member"
            report.add(path, found, hint="name its members, or send requests to it by a rule")
        elif name in seen:
            report.add(path, f"cannot use {quoted(member)} twice", hint="remove one of them")
        else:
            expect(report, config, path, member, what="model")
        seen.add(name)


def _targets(route: Route) -> Iterator[tuple[KeyPath, str]]:
    """All that it leads to beside its members, and where that is written."""
    path = ("routes", route.name)
    for index, rule in enumerate(route.rules):
        if rule.use:
            yield (*path, "rules", index, "use"), rule.use
    if route.classifier is not None:
        for label, target in route.classifier.labels.items():
            yield (*path, "classifier", "labels", label), target
        if route.classifier.fallback:
            yield (*path, "classifier", "fallback"), route.classifier.fallback


def _classifier(report: Report, config: Config, route: Route) -> None:
    path = ("routes", route.name)
    if route.classifier is None:
        asks = route.policy is Choice.CLASSIFIER
        if asks and report.clean((*path, "classifier"), (*path, "policy")):
            way_out = "add classifier = { model = …, labels = …, fallback = … }, or write another policy"
            report.add((*path, "policy"), "cannot classify without a classifier", hint=way_out)
        return
    at, model = (*path, "classifier", "model"), route.classifier.model
    if config.names.get(model) in config.routes:
        report.add(at, f"cannot ask the route {quoted(model)}", hint="name a model")
    elif model:
        expect(report, config, at, model, what="model")


def _circles(report: Report, config: Config) -> None:
    """Report routes that lead back to themselves."""
    names, routes = config.names, config.routes
    leads = {
        name: [(path, names[target]) for path, target in _targets(route) if names.get(target) in routes]
        for name, route in routes.items()
    }
    done: set[str] = set()

    def follow(name: str, line: tuple[str, ...]) -> None:
        for path, target in leads[name]:
            if target in line:
                circle = (*line[line.index(target) :], target)
                found = f"cannot end: {' leads to '.join(f'routes.{each}' for each in circle)}"
                report.add(path, found, hint="name a model somewhere in this circle")
            elif target not in done:
                follow(target, (*line, target))
        done.add(name)

    for name in routes:
        if name not in done:
            follow(name, (name,))


def unused(config: Config) -> Iterator[str]:
    """What can never apply; one sentence each."""
    known = (*(client.name for client in config.clients), *OWN_SOURCES)
    for route in config.routes.values():
        if route.classifier is not None and route.policy is not Choice.CLASSIFIER:
            why = f'nobody asks it, as the policy is "{route.policy}"'
            yield f'routes.{route.name}.classifier: {why}; write policy = "classifier" to have it asked'
        for index, rule in enumerate(route.rules):
            if rule.clients and not any(fnmatchcase(name, one) for name in known for one in rule.clients):
                patterns = listing(map(quoted, rule.clients))
                yield f"routes.{route.name}.rules[{index}].client: {patterns} matches no client"
