"""Cedar's trap, and that it is shut here: a forbid that cannot be evaluated is skipped, and the request is allowed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import cedarpy
import pytest

from orchestrator.policy.jurisdictions import Jurisdiction
from orchestrator.policy.places import Action
from tests.third_opinion.opinion import Cedar, UnsoundPoliciesError, outcome_of
from tests.third_opinion.plans import quiet_case
from tests.third_opinion.shipped import JURISDICTIONS, cedar_of, shipped_law
from tests.third_opinion.translate import Translation, request, translate
from tests.values import replace

SCHEMA = """
entity Tenant;
entity Place;
type Counter = { known: Bool, value: Long };
type Situation = { personal: Long, persons: Counter };
action "infer" appliesTo { principal: Tenant, resource: Place, context: Situation };
"""
POLICIES = """
@id("OPEN") permit (principal, action, resource) when { context.personal <= 2 };
@id("SHUT") forbid (principal, action, resource) when { context.persons.known && context.persons.value >= 1 };
"""
FULL = '{"personal": 1, "persons": {"known": true, "value": 5}}'
LESS = '{"personal": 1}'
LAW = Translation(Jurisdiction("SG"), POLICIES, SCHEMA, ("personal",), (), frozenset({"OPEN", "SHUT"}))


def test_without_a_schema_a_forbid_that_errors_is_skipped_and_the_request_allowed() -> None:
    whole = cedarpy.is_authorized(request(Action.INFER, FULL), POLICIES, [])
    assert whole.decision is cedarpy.Decision.Deny
    trapped = cedarpy.is_authorized(request(Action.INFER, LESS), POLICIES, [])
    assert trapped.decision is cedarpy.Decision.Allow
    assert trapped.allowed  # what a caller that trusts `allowed` would act on
    assert trapped.diagnostics.errors


def test_an_answer_with_an_error_in_it_is_no() -> None:
    outcome = outcome_of(cedarpy.is_authorized(request(Action.INFER, LESS), POLICIES, []))
    assert not outcome.allowed
    assert not outcome.sound


@pytest.mark.parametrize(
    "context",
    [
        LESS,
        '{"persons": {"known": true, "value": 0}}',
        '{"personal": 1, "persons": {"known": true}}',
        '{"personal": 1, "persons": {"value": 0}}',
        '{"personal": 1, "persons": null}',
        '{"personal": 1, "persons": {"known": true, "value": 9223372036854775808}}',
        '{"personal": "1", "persons": {"known": true, "value": 0}}',
        '{"personal": 1, "persons": {"known": true, "value": 0}, "more": 1}',
        "{}",
        "",
        "no json",
    ],
)
def test_with_a_schema_a_context_of_another_shape_is_no(context: str) -> None:
    outcome = Cedar(LAW).ask_requests([request(Action.INFER, context)])[0]
    assert not outcome.allowed
    assert not outcome.sound


def test_a_whole_context_is_answered() -> None:
    none = '{"personal": 1, "persons": {"known": true, "value": 0}}'
    answers = Cedar(LAW).ask_requests([request(Action.INFER, none), request(Action.INFER, FULL)])
    assert [(one.allowed, one.sound) for one in answers] == [(True, True), (False, True)]


def test_an_action_that_the_schema_does_not_know_is_no() -> None:
    none = '{"personal": 1, "persons": {"known": true, "value": 0}}'
    assert not Cedar(LAW).ask_requests([request(Action.EXPORT, none)])[0].allowed


@pytest.mark.parametrize(
    "policy",
    [
        "forbid (principal, action, resource) when { context.persns.value >= 1 };",
        'forbid (principal, action, resource) when { context.personal >= "1" };',
        "forbid (principal, action, resource) when { context.personal.contains(1) };",
    ],
)
def test_policies_that_do_not_fit_the_schema_are_never_asked(policy: str) -> None:
    with pytest.raises(UnsoundPoliciesError):
        Cedar(replace(LAW, policies=POLICIES + policy))


@pytest.mark.parametrize("jurisdiction", JURISDICTIONS)
def test_every_shipped_law_is_valid_and_names_its_rules(jurisdiction: Jurisdiction) -> None:
    translation = translate(shipped_law(), jurisdiction)
    found = cedarpy.validate_policies(translation.policies, translation.schema)
    assert found.validation_passed, found.errors
    assert translation.rules
    assert all(f'@id("{name}")' in translation.policies for name in translation.rules)


@pytest.mark.parametrize("jurisdiction", JURISDICTIONS)
def test_leaving_out_any_attribute_of_what_was_allowed_is_no(jurisdiction: Jurisdiction) -> None:
    cedar = cedar_of(jurisdiction)
    case = quiet_case(shipped_law(), jurisdiction)
    whole = cedar.translation.request(case)
    assert cedar.ask_requests([whole])[0].allowed
    spoilt = list(_without_one(json.loads(whole["context"])))
    assert len(spoilt) >= len(cedar.translation.attributes) + 3 * len(cedar.translation.counters)
    requests = [request(case.movement[0], json.dumps(context)) for context in spoilt]
    for context, outcome in zip(spoilt, cedar.ask_requests(requests), strict=True):
        assert not outcome.allowed, context
        assert not outcome.sound, context


def _without_one(context: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the context without each attribute in turn, and without each part of each counter."""
    for name, value in context.items():
        yield {other: kept for other, kept in context.items() if other != name}
        if isinstance(value, dict):
            for part in value:
                yield context | {name: {other: kept for other, kept in value.items() if other != part}}
