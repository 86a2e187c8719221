"""The pool's side does the duties again, and counts what arrived against what the edge says that it sent."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from orchestrator.engines.generation import Message
from orchestrator.engines.generation import Role as Speaker
from orchestrator.evidence.duties import DISCHARGERS
from orchestrator.evidence.inputs import InputManifest, InputPart
from orchestrator.policy.labels import Domestic, Effective
from orchestrator.policy.packs import Obligation, ObligationKind
from scheduler.intake.second_permit import second_permit
from tests.bundles.sides import NOW_MS, Document
from tests.intake.bench import CN, SG, Bench, bench, told
from tests.intake.small_house import EDGE, MILD, House, grant, manifest, opened, owe
from tests.values import replace

DUTIES = {
    ObligationKind.RETAIN: "P6M",
    ObligationKind.PROVE_NO_DOMESTIC_INPUT: "CN",
    ObligationKind.DISCLOSE: "made-by-ai",
    ObligationKind.LABEL: "synthetic",
    ObligationKind.NOTIFY: "eu-13-cn",
}


@pytest.mark.parametrize("kind", ObligationKind, ids=lambda kind: kind.value)
def test_a_duty_that_nothing_discharges_refuses(kind: ObligationKind, monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(cn_rules=[grant("CN"), owe("CN", {kind.value: DUTIES[kind]})])
    made = bench(house, replace(told(), notices=(("eu-13-cn", "1"),)), manifest())
    check = made.judge()
    assert check.problem is None
    assert [done.obligation for done in check.discharged] == [Obligation(kind, DUTIES[kind])]
    monkeypatch.delitem(DISCHARGERS, kind)
    check = made.judge()
    assert check.problem is not None
    assert check.problem.code == "policy_newer"
    assert (check.alarm, check.discharged) == (None, ())


PROOF = owe("CN", {"prove_no_domestic_input": "CN"})
OTHER_COUNTRY = frozenset({SG, CN})


def resend(made: Bench, inputs: InputManifest | None) -> None:
    """Sign the attempt again, with another input manifest or without one."""
    made.open = opened(made.open.facts, made.open.citation, inputs=inputs)


def one_more_message(made: Bench) -> None:
    more = (*made.open.generation.messages, Message(Speaker.USER, "and this"))
    made.open = replace(made.open, generation=replace(made.open.generation, messages=more))


def another_system_prompt(made: Bench) -> None:
    _, *rest = made.open.generation.messages
    said = (Message(Speaker.SYSTEM, "Be long!!"), *rest)
    longer = (Message(Speaker.SYSTEM, "Be very long."), *rest)
    same_size = replace(made.open, generation=replace(made.open.generation, messages=said))
    assert second_permit(same_size, EDGE, made.cited, made.newest, NOW_MS).problem is None, "sizes are what is counted"
    made.open = replace(made.open, generation=replace(made.open.generation, messages=longer))


def a_part_left_out(made: Bench) -> None:
    resend(made, replace(manifest(), parts=manifest().parts[1:]))


def a_part_that_did_not_arrive(made: Bench) -> None:
    resend(made, replace(manifest(), parts=(*manifest().parts, InputPart("tool", 1, 9, None))))


def a_part_told_twice(made: Bench) -> None:
    resend(made, replace(manifest(), parts=(InputPart("user", 9, 999, None), *manifest().parts)))


def less_than_the_label(made: Bench) -> None:
    made.house.cn_rules[0] = grant("CN")
    yes = replace(MILD, domestic=Domestic.YES)
    made.open = opened(told(yes), made.open.citation, inputs=manifest())


def another_origin(made: Bench) -> None:
    resend(made, manifest(replace(MILD, origin=OTHER_COUNTRY)))


def forged_inputs(made: Bench) -> None:
    made.open = replace(made.open, inputs=replace(manifest(), cache_namespace="tenant"))


def dropped_inputs(made: Bench) -> None:
    made.open = replace(made.open, inputs=None)


ACCOUNT, SAYS, SIGNED = "does not account for what arrived", "another thing than the label", "not signed"


@pytest.mark.parametrize(
    ("change", "alarm"),
    [
        (one_more_message, ACCOUNT),
        (another_system_prompt, ACCOUNT),
        (a_part_left_out, ACCOUNT),
        (a_part_that_did_not_arrive, ACCOUNT),
        (a_part_told_twice, ACCOUNT),
        (less_than_the_label, SAYS),
        (another_origin, SAYS),
        (forged_inputs, SIGNED),
        (dropped_inputs, SIGNED),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
@pytest.mark.parametrize("rules", [[PROOF], []], ids=["proof owed", "none owed"])
def test_a_manifest_that_is_wrong_is_an_alarm_whether_it_is_owed_or_not(
    change: Callable[[Bench], None], alarm: str, rules: list[Document]
) -> None:
    made = bench(House(cn_rules=[grant("CN"), *rules]), inputs=manifest())
    assert made.judge().problem is None
    change(made)
    check = made.judge()
    assert check.problem is not None
    assert check.problem.code == "policy_mismatch"
    assert alarm in (check.alarm or "")
    assert made.open.attempt in (check.alarm or "")
    assert check.discharged == ()


def test_a_proof_names_the_manifest_that_it_stands_on() -> None:
    check = bench(House(cn_rules=[grant("CN"), PROOF]), inputs=manifest()).judge()
    (done,) = check.discharged
    assert done.did == f"input manifest {manifest().digest} states none of CN"


def test_without_a_manifest_a_law_that_wants_a_proof_refuses() -> None:
    check = bench(House(cn_rules=[grant("CN"), PROOF])).judge()
    assert check.problem is not None
    assert (check.problem.code, check.alarm, check.discharged) == ("policy_newer", None, ())


def test_where_only_the_newest_law_wants_a_proof_it_is_wanted() -> None:
    made = bench()
    assert made.judge().problem is None
    made.house.cn_rules.append(PROOF)
    made.renew()
    check = made.judge()
    assert check.problem is not None
    assert (check.problem.code, check.alarm) == ("policy_newer", None)
    resend(made, manifest())
    assert made.judge().problem is None


@pytest.mark.parametrize(
    "label",
    [replace(MILD, domestic=Domestic.YES), replace(MILD, origin=OTHER_COUNTRY), replace(MILD, collected=OTHER_COUNTRY)],
)
def test_an_honest_manifest_that_proves_nothing_discharges_nothing(label: Effective) -> None:
    check = bench(House(cn_rules=[grant("CN"), PROOF]), told(label), manifest(label)).judge()
    assert check.problem is not None
    assert (check.problem.code, check.alarm, check.discharged) == ("policy_newer", None, ())
