"""Whatever an engine answers, the tenant is told what is documented, and the engine's next answer is right."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from itertools import product

import pytest

from benchmarks.stand import PATHS
from tests.hostile import engine
from tests.hostile.besieged import ENGINES, Besieged
from tests.hostile.client import Answer, body, request

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

PROTOCOL, FAILED = "engine_protocol", "engine_failed"
FIRST, BETWEEN, TOTAL = "timeout_first_token", "timeout_between_tokens", "timeout_total"
ENDS = tuple(mode.replace("cut_", "end_") for mode in engine.CUT)

ODD_AND_RIGHT = frozenset(
    (
        *("ok", "first_hundreds", "usage_less", "text_after_done", "done_twice", "byte_order_mark", "crlf", "crumbs"),
        *("usage_falls", "usage_twice", "data_lines", "no_space", "two_in_one", "chunk_extended", "trailer"),
        *("empty_words", "thoughts"),
    )
)
OTHER_TEXT = {"long_text": "x" * 250_000, "control": engine.CONTROL}
RETRY_AFTER_MAX_S = 60
REFUSED = {
    "status_400": (400, "bad_generation"),
    "status_404": (503, "model_not_served"),
    "status_429": (503, "engine_busy"),
    "status_503": (503, "engine_busy"),
    **dict.fromkeys(("later_429", "later_503", "later_inf"), (503, "engine_busy")),
    "status_500": (502, FAILED),
    "status_500_big": (502, FAILED),
}
BEGUN = {
    **dict.fromkeys(("usage_negative", "usage_of_2_60", "usage_of_2_52", "usage_far_beyond"), PROTOCOL),
    **dict.fromkeys(("usage_fraction", "usage_text", "usage_none", "too_many"), PROTOCOL),
    **dict.fromkeys(("no_reason", "no_done", "text_after_reason", "usage_bool", "usage_cached"), PROTOCOL),
    **dict.fromkeys(("flood_text", "flood_between"), PROTOCOL),
    **dict.fromkeys(("reason_unknown", "reason_number", "reason_long", "reason_twice"), PROTOCOL),
    **dict.fromkeys(("error_event", "cut_in_middle", "cut_before_done", "end_in_middle", "end_before_done"), FAILED),
    **dict.fromkeys(("hang_in_middle", "drip_comments_later"), BETWEEN),
    "drip_text": TOTAL,
}
"""Modes that fail in the middle: a stream ends with an error event, and a whole answer never begins."""
EITHER = frozenset(("second_answer",))
"""Right, unless the second answer came with the first and was seen."""


def expected(mode: str, stream: bool) -> tuple[int, str]:
    """Return what a tenant is told of an engine in a mode."""
    if mode in ODD_AND_RIGHT or mode in OTHER_TEXT:
        return 200, ""
    if mode in REFUSED:
        return REFUSED[mode]
    code = BEGUN.get(mode, FIRST if mode in engine.SLOW else FAILED if mode[:4] in ("cut_", "end_") else PROTOCOL)
    status = 504 if code in (FIRST, BETWEEN, TOTAL) else 502
    return (200 if stream and mode in BEGUN else status), code


def wrong(mode: str, stream: bool, answer: Answer) -> str | None:
    """Return what is wrong with an answer, None where nothing is."""
    if engine.POISON.encode() in answer.body:
        return "holds what was said beside the answer"
    if mode in EITHER and answer.told == (200, ""):
        return None if answer.text == engine.TEXT else "another text"
    if int(answer.headers.get("retry-after", "1")) not in range(1, RETRY_AFTER_MAX_S + 1):
        return "sends its client away for as long as the engine says"
    if answer.told != expected(mode, stream):
        return f"{answer.told} in place of {expected(mode, stream)}"
    if mode in ODD_AND_RIGHT and (answer.text, answer.whole) != (engine.TEXT, True):
        return "another text"
    if mode in OTHER_TEXT and (answer.text, answer.tokens) != (OTHER_TEXT[mode], 1):
        return "another text, or count"
    if mode in BEGUN and stream and (answer.whole or not answer.tokens):
        return f"has an end, or no count: {answer.tokens}"
    return None


async def of_all(besieged: Besieged, modes: Iterable[str]) -> list[str]:
    """Ask for every mode on every path, whole and as a stream, and return what was wrong."""
    found: list[str] = []

    async def on(index: int, path: str) -> None:
        model = besieged.model(index, path)
        for mode, stream in product(listed[index::ENGINES], (True, False)):
            asked = body(model, f"MODE={mode}", stream=stream)
            told = wrong(mode, stream, await besieged.door.ask(request(besieged.key, asked)))
            if told is not None:
                found.append(f"{mode} {path} {'stream' if stream else 'whole'}: {told}")
            # So that no failures in a row hold the pool off, and because it must.
            await besieged.answers_well(model)

    listed = sorted(modes)
    await asyncio.gather(*(on(index, path) for index, path in product(range(ENGINES), PATHS)))
    return found


async def test_what_an_engine_says_is_answered_as_documented(besieged: Besieged) -> None:
    async with besieged.siege():
        assert await of_all(besieged, engine.SAID) == []


async def test_engines_that_hang_up_are_told_as_failed(besieged: Besieged) -> None:
    async with besieged.siege():
        assert await of_all(besieged, (*engine.CUT, *ENDS)) == []


async def test_a_flood_of_an_engine_ends_its_answer_and_nothing_else(besieged: Besieged) -> None:
    async with besieged.siege():
        assert await of_all(besieged, engine.FLOODS) == []


async def test_engines_that_fall_silent_end_in_the_time_of_the_tenant(besieged: Besieged) -> None:
    async with besieged.siege():
        cases = list(product(engine.SLOW, PATHS, (True, False)))
        raws = [
            request(besieged.key, body(besieged.model(index, path), f"MODE={mode}", stream=stream))
            for index, (mode, path, stream) in enumerate(cases)
        ]
        answers = await besieged.door.all(raws, at_once=len(raws))
        assert [
            (case, told)
            for case, answer in zip(cases, answers, strict=True)
            if (told := wrong(case[0], case[2], answer)) is not None
        ] == []


@pytest.mark.parametrize("mode", ["status_500", "cut_first", "cut_in_middle"])
async def test_prompts_that_an_engine_fails_at_hold_off_nobody_but_their_tenant(besieged: Besieged, mode: str) -> None:
    async with besieged.siege():
        models = [besieged.model(index, path) for index, path in enumerate(PATHS)]
        failing = [request(besieged.key, body(model, f"MODE={mode}")) for model in models]
        well = [request(besieged.good, body(model)) for model in models]
        await besieged.door.all(failing * 3, at_once=1)
        answers, _ = await asyncio.gather(besieged.door.all(well * 30, at_once=2), besieged.door.all(failing * 30))
        assert [answer.told for answer in answers if not (answer.whole and answer.text == engine.TEXT)] == []
