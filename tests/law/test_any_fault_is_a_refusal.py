"""Whatever goes wrong inside of a decision is a refusal: never an exception, never a yes.

A fault is put into every function that a decision reaches, at each of its calls, and at every line that it executes.
Which functions those are is found by watching the decision, so that a new one is held to it as well.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.placement import decide
from orchestrator.placement.decide import Ground
from orchestrator.placement.fleet import Assurance, Fleet, Pool, Prices
from orchestrator.placement.plan import Plan
from orchestrator.placement.settings import PlacementSettings
from orchestrator.policy import permit as gate
from orchestrator.policy import table as compiled
from orchestrator.policy.bundle import Law
from orchestrator.policy.counters import Counter, CounterKind
from orchestrator.policy.facts import Facts
from orchestrator.policy.ids import EdgeId, PathwayId, PoolId, SideId
from orchestrator.policy.packs import Effect, Mode, Obligation, ObligationKind, Operator, Subject, Test
from orchestrator.policy.pathways import PathwayKind
from orchestrator.policy.places import Action
from orchestrator.policy.verdicts import FAULT, Verdict
from tests.law.worlds import CN, DE, FAR, NOW_MS, SG, at, entity, facts, infer, own, pack, paper, place, plain, rule
from tests.values import replace

EDGE, POOL = place("edge", SG), place("pool", CN)
WORLD = (SG, CN, DE)
NOTIFY = Obligation(ObligationKind.NOTIFY, "told")
FEW = Test(Subject.COUNTER, Operator.BELOW, 5, counter=CounterKind.CN_PERSONS)
PROCESSED = Test(Subject.PROCESSED_IN, Operator.TOUCHES, members=at(DE))
LAW = Law(
    [
        *own(
            pack(
                "rules",
                WORLD,
                rule("G-1", Effect.GRANT, (FEW, Test(Subject.PROCESSED_IN, Operator.WITHIN, members=at(*WORLD)))),
                rule("F-1", Effect.FORBID, (Test(Subject.GRADE, Operator.AT_LEAST, rank=3),)),
                rule("F-2", Effect.FORBID, unless=(FEW,)),
                rule("R-1", Effect.REQUIRE, (PROCESSED,), pathways=(PathwayKind.EU_SCC,)),
                rule("O-1", Effect.OBLIGE, obligations=(NOTIFY,)),
            ),
            pack("shadow", WORLD, rule("S-1", Effect.FORBID), mode=Mode.SHADOW),
        ),
    ],
    FAR,
)
TOLD = replace(
    facts(replace(plain(SG), located=at(SG))),
    pathways=tuple(
        paper(PathwayKind.EU_SCC, entity("tenant", SG).id, one.operator.id, at(*WORLD)) for one in (EDGE, POOL)
    ),
    processed_in=at(DE),
    counters=(Counter(CounterKind.CN_PERSONS, 1, NOW_MS, NOW_MS + 100),),
    notices=(("told", "1"),),
)
"""Unregulated, so that a clock that is off hinders nothing; allowed, so that a yes would show."""
DECLARED = Pool(PoolId("pool"), SideId("domestic"), "guizhou", "cpu", POOL, Assurance.TWO_PARTY, (), 1)
SETTINGS = PlacementSettings("USD", 1, 1, 1, 1, 1, 1, 1)  # type: ignore[arg-type]

Door = Callable[[], list[Verdict]]


def table() -> compiled.RouteTable:
    return compiled.RouteTable(LAW, EDGE, [POOL], NOW_MS)


def ground() -> Ground:
    return Ground(
        table(),
        Fleet(pools=(DECLARED,)),
        Plan(EdgeId("edge"), Fleet(pools=(DECLARED,)), Prices(), SETTINGS.currency),
        SETTINGS,
        frozenset({PoolId("another")}),
        frozenset({PathwayId("another")}),
        frozenset(ObligationKind),
        skew_ms=31_000,
    )


def fresh(door: str) -> Door:
    """One of the ways to ask, with whatever it needs made before any fault."""
    if door == "permit":
        movement = infer(EDGE, POOL)
        return lambda: [gate.permit(LAW, TOLD, movement, NOW_MS)]
    if door == "permit_route":
        return lambda: [gate.permit_route(LAW, TOLD, EDGE, POOL, NOW_MS)]
    if door == "permit_sink":
        return lambda: [gate.permit_sink(LAW, TOLD, Action.STORE, EDGE, POOL, NOW_MS)]
    if door == "verdicts":
        made = table()
        return lambda: list(made.verdicts(TOLD, NOW_MS))
    stand = ground()
    return lambda: list(decide.judge(stand, TOLD, NOW_MS).values())


ENTRIES: dict[str, tuple[Any, str]] = {
    "permit": (gate, "permit"),
    "permit_route": (gate, "permit_route"),
    "permit_sink": (gate, "permit_sink"),
    "verdicts": (compiled.RouteTable, "verdicts"),
    "judge": (decide, "judge"),
}
"""Each door's own function: what is inside of it is at fault, not itself."""
MAKERS = {
    "permit.deny", "permit._deny", "permit._sorted_ids", "verdicts.Verdict.__init__", "verdicts.Reason.__init__",
}  # fmt: skip
"""What a refusal is made of. These may fail once, where something is decided; without them there is no answer."""
NAMED = {
    "packs.Test.holds", "packs.Rule.applies", "packs.Pack.in_force", "places.Place.reach", "places.Place.soil",
    "pathways.Pathway.covers_payload", "pathways.Pathway.covers_place", "bundle.Law.packs_of",
    "bundle.Law.next_change_ms", "facts.situation_of", "facts.Facts.counts", "facts.Facts.notice",
    "counters.Counter.holds", "labels.Effective.regulated", "permit.house_reasons", "permit._ask", "permit._held",
    "permit.touched", "permit.refuses", "permit._answers", "permit._verdict", "permit._until_ms",
}  # fmt: skip
"""What every door is known to reach."""
TABLE = {
    "bits.TestBits.true", "table.RouteTable.allowed", "table.RouteTable._ask", "table.RouteTable._held",
    "table.RouteTable._where", "table.RouteTable._satisfied", "table.RouteTable._verdicts_of", "table._remember",
    "table._mask", "facts.Facts.__hash__", "permit.permit_route",
}  # fmt: skip


def rooms() -> list[ModuleType]:
    names = [name for name in sys.modules if name.startswith("orchestrator.policy.")]
    return [sys.modules[name] for name in (*sorted(names), "orchestrator.placement.decide")]


def owners() -> Iterator[tuple[str, Any, str, Any, FunctionType]]:
    """Every function of the law: how it is called, where it hangs, its name there, what hangs there, and itself."""
    for room in rooms():
        short = room.__name__.rpartition(".")[2]
        for name, found in vars(room).items():
            if isinstance(found, FunctionType) and found.__module__ == room.__name__:
                yield f"{short}.{name}", room, name, found, found
            if isinstance(found, type) and found.__module__ == room.__name__:
                for attribute, member in vars(found).items():
                    inner = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
                    if isinstance(inner, FunctionType):
                        yield f"{short}.{name}.{attribute}", found, attribute, member, inner


@cache
def reached(door: str) -> dict[str, int]:
    """Every function that a decision reaches, with how often it is called, in the order of the names."""
    # A door is known by what it guards: all doors share the code of their guard.
    by_code = {getattr(function, "__wrapped__", function).__code__: name for name, _, _, _, function in owners()}
    own, called = ENTRIES[door][1], dict[str, int]()

    def watch(frame: FrameType, event: str, _: object) -> None:
        name = by_code.get(frame.f_code)
        if event == "call" and name is not None and name.rpartition(".")[2] != own:
            called[name] = called.get(name, 0) + 1

    ask, before = fresh(door), sys.getprofile()
    sys.setprofile(watch)
    try:
        verdicts = ask()
    finally:
        sys.setprofile(before)
    assert [verdict.allowed for verdict in verdicts] == [True]
    return dict(sorted(called.items()))


@contextmanager
def fault(name: str, at_call: int | None, error: Exception) -> Iterator[None]:
    """While this lasts, that function raises: at one of its calls (counted from 0), or at each."""
    _, owner, attribute, member, function = next(found for found in owners() if found[0] == name)
    calls = 0

    def broken(*args: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if at_call is None or calls - 1 == at_call:
            raise error
        return function(*args, **named)

    replaced: Any = property(broken) if isinstance(member, property) else broken
    if isinstance(member, staticmethod):
        replaced = staticmethod(broken)
    # A function that other modules have imported by name is broken there as well.
    places = [owner] if isinstance(owner, type) else [one for one in rooms() if vars(one).get(attribute) is function]
    with pytest.MonkeyPatch.context() as patch:
        for one in places:
            patch.setattr(one, attribute, replaced)
        yield
    assert calls, f"{name} was not called"


def escaped(ask: Door) -> str | None:
    """Ask, and say what is wrong with the answer; None when it is the refusal that it must be."""
    try:
        verdicts = ask()
    except Exception as error:  # noqa: BLE001  # outermost: the test is about whatever comes out
        return f"raised {error!r}"
    if any(verdict.allowed for verdict in verdicts):
        return "allowed"
    if [verdict.rules for verdict in verdicts] != [(FAULT,)]:
        return f"refused by {[verdict.rules for verdict in verdicts]}"
    return None


DOORS = tuple(ENTRIES)
ERRORS = (RuntimeError, KeyError, ValueError, OverflowError, RecursionError, MemoryError, StopIteration, AssertionError)


def test_the_decision_is_watched_in_all_its_parts() -> None:
    for door in DOORS:
        assert set(reached(door)) >= NAMED, door
    assert set(reached("verdicts")) >= TABLE
    assert set(reached("judge")) >= TABLE | {"table.RouteTable.verdicts", "decide._dischargeable"}


@pytest.mark.parametrize("door", DOORS)
def test_a_fault_in_any_function_at_any_call_is_a_refusal(door: str) -> None:
    wrong: dict[str, str] = {}
    for name, calls in reached(door).items():
        for at_call in range(calls):
            ask = fresh(door)
            with fault(name, at_call, RuntimeError("a fault")):
                found = escaped(ask)
            if found is not None:
                wrong[f"{name}, call {at_call} of {calls}"] = found
            assert [verdict.allowed for verdict in ask()] == [True], f"the fault of {name} is over and still refuses"
    assert wrong == {}


@pytest.mark.parametrize("door", DOORS)
def test_a_function_that_always_fails_refuses_everything(door: str) -> None:
    wrong: dict[str, list[str | None]] = {}
    for name in reached(door).keys() - MAKERS:
        ask = fresh(door)
        with fault(name, None, RuntimeError("a fault")):
            found = [escaped(ask), escaped(ask)]
        if found != [None, None]:
            wrong[name] = found
    assert wrong == {}


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(DOORS), st.sampled_from(ERRORS), st.data())
def test_any_kind_of_fault_is_a_refusal(door: str, kind: type[Exception], data: st.DataObject) -> None:
    calls = reached(door)
    name = data.draw(st.sampled_from(list(calls)))
    ask = fresh(door)
    with fault(name, data.draw(st.integers(0, calls[name] - 1)), kind("a fault")):
        assert escaped(ask) is None


def run_to(door: str, ask: Door, line: int | None) -> tuple[int, str | None]:
    """Ask, with a fault at that executed line of the law (counted from 0), and return how many were executed.

    The door's own lines are left out: one of them begins the block in which faults are caught.
    """
    owner, attribute = ENTRIES[door]
    own: CodeType = getattr(owner, attribute).__code__
    codes = {function.__code__.co_filename for _, _, _, _, function in owners()} - {"<string>"}
    count = 0

    def each(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        if event == "line" and frame.f_code is not own:
            count += 1
            if count - 1 == line:
                raise RuntimeError("a fault")
        return each

    def enter(frame: FrameType, _: str, __: object) -> Any:
        return each if frame.f_code.co_filename in codes else None

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        found = escaped(ask)
    finally:
        sys.settrace(before)
    return count, found


@cache
def lines_of(door: str) -> int:
    """How many lines of the law a decision executes."""
    return run_to(door, fresh(door), None)[0]


@pytest.mark.parametrize("door", DOORS)
def test_a_fault_at_any_line_is_a_refusal(door: str) -> None:
    wrong: dict[int, str] = {}
    for line in range(lines_of(door)):
        _, found = run_to(door, fresh(door), line)
        if found is not None:
            wrong[line] = found
    assert wrong == {}
    assert lines_of(door) > 100


def test_without_a_fault_every_door_is_open() -> None:
    for door in DOORS:
        assert [verdict.allowed for verdict in fresh(door)()] == [True]


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(["label", "pathways", "counters", "notices", "tenant", "processed_in"]))
def test_facts_that_are_no_facts_are_a_refusal(field: str) -> None:
    told: Facts = replace(TOLD)
    object.__setattr__(told, field, None)  # no constructor would make it
    made, stand = table(), ground()
    asked = {
        "permit": lambda: [gate.permit(LAW, told, infer(EDGE, POOL), NOW_MS)],
        "permit_route": lambda: [gate.permit_route(LAW, told, EDGE, POOL, NOW_MS)],
        "verdicts": lambda: list(made.verdicts(told, NOW_MS)),
        "judge": lambda: list(decide.judge(stand, told, NOW_MS).values()),
    }
    wrong = {door: found for door, ask in asked.items() if (found := escaped(ask)) is not None}
    assert wrong == {}
