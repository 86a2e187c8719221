"""Work that goes on with a cut answer: to equals alone, never without saying where the answer was made."""

from __future__ import annotations

from orchestrator.engines.generation import Resume, Said
from orchestrator.engines.identity import NOT_CONTINUED, Continuing
from orchestrator.policy.ids import EdgeId, ModelId, PoolId, ReplicaId, digest_of
from orchestrator.wire.frames import Open
from scheduler.intake.choice import Asked
from scheduler.intake.dispatch import Dispatcher
from scheduler.intake.instructions import Assign, Refuse
from scheduler.intake.replica import Replica
from scheduler.intake.shape import Shapes
from tests.intake.bench import CN, Bench, told
from tests.intake.small_house import OVERSEAS, House, citation, opened
from tests.values import replace

POOL, MODEL = PoolId("p"), ModelId("m")
EQUAL = Continuing(digest_of(b"equal"), Resume.IDS)
OTHERS = (NOT_CONTINUED, Continuing(digest_of(b"other"), Resume.IDS), replace(EQUAL, by=Resume.TEXT))
GOES_ON = Asked(MODEL, needs=EQUAL)
SAID = Said(Resume.IDS, digest_of(b"equal"), 3, "and so ", (1, 2, 3))


def replica(name: str, continuing: Continuing, slots: int = 1) -> Replica:
    return Replica(ReplicaId(name), "1", MODEL, slots, 0, continuing=continuing)


def codes(instructions: list[object]) -> list[str]:
    return [one.code for one in instructions if isinstance(one, Refuse)]


def test_it_goes_to_an_equal_however_free_the_others_are() -> None:
    queue = Dispatcher(POOL, 4)
    for number, other in enumerate(OTHERS):
        queue.joined(replica(f"a-{number}", other, slots=8))
    assert codes([*queue.submit(1, GOES_ON, 1_000, 0)]) == ["identity_mismatch"]
    queue.joined(replica("b", EQUAL))
    assert queue.submit(2, GOES_ON, 1_000, 0) == [Assign(2, ReplicaId("b"), EQUAL)]
    assert queue.submit(3, GOES_ON, 1_000, 0) == [], "it waits for the equal, though others are free"
    assert queue.ended(2, 1) == [Assign(3, ReplicaId("b"), EQUAL)]


def test_when_the_last_equal_leaves_what_waits_for_it_is_told() -> None:
    queue = Dispatcher(POOL, 4)
    queue.joined(replica("a", OTHERS[0], slots=1))
    queue.joined(replica("b", EQUAL))
    queue.submit(1, GOES_ON, 1_000, 0)
    queue.submit(2, GOES_ON, 1_000, 0)
    queue.submit(3, Asked(MODEL), 1_000, 0)
    queue.submit(4, Asked(MODEL), 1_000, 0)
    queue.left(ReplicaId("b"), "1")
    assert codes([*queue.tick(1)]) == ["identity_mismatch"]
    assert queue.state().waiting == 1, "what needs no equal waits on"


def judged(change: Open) -> Bench:
    house = House()
    bundle = house.bundle(OVERSEAS)
    return Bench(house, bundle, bundle, change)


def test_an_answer_that_goes_on_says_where_it_was_made_or_raises_an_alarm() -> None:
    house = House()
    cites = citation(house.bundle(OVERSEAS))
    silent = opened(told(), cites)
    silent = replace(silent, generation=replace(silent.generation, said=SAID))
    check = judged(silent).judge()
    assert check.problem is not None
    assert check.problem.code == "policy_mismatch"
    assert check.alarm is not None
    assert "and so" not in check.alarm
    honest = opened(replace(told(), processed_in=frozenset({CN})), cites)
    honest = replace(honest, generation=replace(honest.generation, said=SAID))
    assert judged(honest).judge().problem is None


def test_what_was_said_counts_as_prompt_and_not_as_answer() -> None:
    house = House()
    bundle = house.bundle(OVERSEAS)
    fresh = opened(told(), citation(bundle))
    limited = replace(fresh.generation, sampling=replace(fresh.generation.sampling, max_tokens=10))
    shapes, edge, taken_up = Shapes(b"s" * 32), EdgeId("edge"), replace(limited, said=SAID)
    before, after = (
        shapes.asked_of(replace(fresh, generation=one), bundle, edge, sum(map(len, one.payload())))
        for one in (limited, taken_up)
    )
    assert before.needs is None
    assert after.needs == EQUAL
    assert after.prompt_tokens > before.prompt_tokens
    assert after.output_tokens == before.output_tokens - SAID.tokens
