"""Of the replies that come close together one teaches a speed, and all of them teach everything else."""

from __future__ import annotations

import pytest

from orchestrator.placement.outliers import LOOK_EVERY_US
from orchestrator.placement.sight import LEARN_EVERY_US
from orchestrator.policy.ids import ModelId, PoolId
from tests.placement.test_choice import MODEL
from tests.placement.test_sight import COMPLETE, DECLARED, FASTER, HERE, THERE, Told, counts, measured
from tests.values import replace


def samples(sight: Told, at_us: int, pool: PoolId = HERE, model: ModelId = MODEL) -> int:
    speed = sight.seen(at_us, pool, model).speed
    return 0 if speed is None else speed.samples


def test_of_a_burst_of_replies_one_teaches_and_a_later_one_again() -> None:
    sight = measured()
    steps_us = (0, 0, 1, LEARN_EVERY_US - 1, LEARN_EVERY_US, 2 * LEARN_EVERY_US - 1, 2 * LEARN_EVERY_US)
    found: list[int] = []
    for number, step_us in enumerate(steps_us):
        at_us = 1_000_000 + step_us
        sight.go(str(number), at_us - 20_000)
        sight.speak(str(number), at_us - 10_000)
        sight.end(str(number), COMPLETE, at_us)
        found.append(samples(sight, at_us))
    assert found == [1, 1, 1, 1, 2, 2, 3], "counted from the last one that taught, not from the last that came"


def test_the_first_reply_of_a_place_a_model_or_other_rates_always_teaches() -> None:
    sight = measured()
    other = ModelId("other")
    firsts = ((HERE, MODEL, DECLARED), (THERE, MODEL, DECLARED), (HERE, other, DECLARED), (HERE, MODEL, FASTER))
    for pool, model, declared in firsts:
        sight.go("a", 0, pool, declared=declared, model=model)
        sight.speak("a", 10_000)
        sight.end("a", COMPLETE, 20_000)
        speed = sight.seen(20_000, pool, model).speed
        assert speed is not None
        assert speed.samples == 1
        assert speed.prefill_ns == pytest.approx(declared.prefill_ns, rel=0.01), "it began from what is declared now"


def test_what_teaches_no_speed_teaches_all_else() -> None:
    sight = measured()
    for number in range(8):
        sight.go(str(number), 0, blocks=(1, 2), expected_cached=80)
        sight.speak(str(number), 10)
    beliefs = []
    for number in range(3):
        sight.end(str(number), replace(COMPLETE, cached_tokens=0), 20)
        beliefs.append(sight.expect((1, 2, 3), 100, 1_000, 20)[HERE][0])
    assert beliefs == [180, 162, 145]
    assert counts(sight.seen(20)) == (5, 5, 0)
    for number in range(3, 8):
        sight.end(str(number), COMPLETE, 20)
    assert samples(sight, 20) == 1
    assert counts(sight.seen(20)) == (0, 0, 0)


def test_a_slow_spell_is_seen_however_close_its_replies_are() -> None:
    sight = Told()
    slow, *others = [PoolId(f"p{number}") for number in range(3)]
    for name, sent_us in (*((other, 8_900_000) for other in others), (slow, 0)):
        for number in range(4):
            sight.go(f"{name}-{number}", sent_us, name)
            sight.speak(f"{name}-{number}", sent_us + 10_000)
    for attempt in [*sight.flights, "look"]:
        at_us = 9_000_000
        if attempt == "look":
            at_us += LOOK_EVERY_US
            sight.go("look", at_us, others[0])
            sight.speak("look", at_us)
        sight.end(attempt, COMPLETE, at_us)
    assert samples(sight, 9_000_000, slow) == 1
    assert sight.out(MODEL, 9_000_000 + LOOK_EVERY_US) == {slow}
