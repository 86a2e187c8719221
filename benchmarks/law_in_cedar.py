"""The same verdicts asked of Cedar: the translation of the tests' third opinion, with prepared policies and requests.

Cedar answers for one jurisdiction and one movement at a time: a route from Singapore to China is four questions, both
laws, out and back. Only the asking is timed, not the making of requests.
"""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.policy.bundle import Law
from orchestrator.policy.jurisdictions import Jurisdiction
from orchestrator.policy.places import Action, Leg
from tests.third_opinion.cases import Case, Site
from tests.third_opinion.opinion import Cedar
from tests.third_opinion.translate import translate

ROUTES = 250

Timed = Callable[[Callable[[], object], int], float]


def measure_cedar(law: Law, each: Timed) -> dict[str, object]:
    """Return what one route costs in Cedar, in microseconds, and how many routes were asked for at once."""
    singapore, china = frozenset({"SG"}), frozenset({"CN"})
    asked: list[tuple[Cedar, list[dict[str, str]]]] = []
    for country in ("SG", "CN"):
        cedar = Cedar(translate(law, Jurisdiction(country)))
        requests = []
        for movement, source, target in (
            ((Action.INFER, Leg.EDGE_TO_POOL), singapore, china),
            ((Action.RETURN, Leg.POOL_TO_EDGE), china, singapore),
        ):
            case = Case(
                target=Site(target, target),
                source=Site(source, source),
                origin=singapore,
                located=singapore,
                collected=singapore,
                processed_in=china if movement[0] is Action.RETURN else frozenset(),
                movement=movement,
            )
            requests += [cedar.translation.request(case)] * ROUTES
        asked.append((cedar, requests))

    def ask() -> None:
        for cedar, requests in asked:
            if not all(outcome.allowed for outcome in cedar.ask_requests(requests)):
                raise ValueError("Cedar refuses what ours allows")

    return {"routes": ROUTES, "route_us": round(each(ask, 1) / ROUTES, 2)}
