"""What an edge keeps of answers: within one budget whatever comes, given back to the byte, and whole or not at all."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from node_agent.border.resume import STEP_BYTES, Kept, Retained
from orchestrator.engines.generation import Resume
from orchestrator.engines.identity import Continuing
from orchestrator.ledger.usage import Resumable
from orchestrator.policy.ids import AttemptId, digest_of
from orchestrator.wire.frames import FRAME_BYTES, Tokens

ATTEMPT = AttemptId("att_" + "1" * 32)
EQUAL = digest_of(b"equal")
BUDGET = 6 * STEP_BYTES
WORDS = st.text(max_size=300)


def frame(text: str, ids: tuple[int, ...], count: int | None = None) -> Tokens:
    return Tokens(1, ATTEMPT, 0, len(ids) if count is None else count, text, ids)


def keeping(budget: Retained, prompt_bytes: int, wanted: bool) -> Kept:
    kept = Kept(budget, wanted)
    kept.take(prompt_bytes)
    return kept


@given(
    st.lists(st.tuples(st.integers(0, 3), WORDS, st.integers(0, 3)), max_size=40),
    st.lists(st.integers(0, 2 * STEP_BYTES), min_size=4, max_size=4),
    st.sampled_from([Resume.IDS, Resume.TEXT]),
)
def test_the_budget_holds_and_every_answer_is_kept_whole_or_not_at_all(
    said: list[tuple[int, str, int]], prompts: list[int], by: Resume
) -> None:
    budget = Retained(BUDGET)
    kept = [keeping(budget, prompt, True) for prompt in prompts]
    wrote: list[list[tuple[str, tuple[int, ...]]]] = [[] for _ in kept]
    for one in kept:
        one.accepted(Continuing(EQUAL, by))
    for which, text, count in said:
        ids = tuple(range(count))
        kept[which].add(frame(text, ids))
        wrote[which].append((text, ids))
        assert 0 <= budget.used_bytes <= BUDGET
    needed = 0
    for one, parts in zip(kept, wrote, strict=True):
        assert one.tokens == sum(len(ids) for _, ids in parts)
        if one.resumable is Resumable.BUDGET:
            continue
        needed += sum(len(text.encode()) + 4 * len(ids) + FRAME_BYTES for text, ids in parts)
        found = one.said()
        if any(text or ids for text, ids in parts):
            assert found is not None
            assert found.text == "".join(text for text, _ in parts)
            assert found.ids == (tuple(number for _, ids in parts for number in ids) if by is Resume.IDS else ())
        else:
            assert found is None
    assert needed <= budget.used_bytes
    for one in kept:
        one.drop()
        one.drop()
    assert budget.used_bytes == 0


def test_tokens_without_their_ids_end_what_is_kept_by_ids() -> None:
    budget = Retained(BUDGET)
    kept = keeping(budget, 10, True)
    kept.accepted(Continuing(EQUAL, Resume.IDS))
    kept.add(frame("one", (1,)))
    kept.add(frame("two", (), 1))
    assert kept.resumable is Resumable.ENGINE
    assert budget.used_bytes == 0
    kept.add(frame("three", (3,)))
    assert budget.used_bytes == 0
    assert kept.tokens == 3


def test_one_that_the_tenant_wants_none_of_takes_no_byte() -> None:
    budget = Retained(BUDGET)
    kept = keeping(budget, 10, False)
    kept.accepted(Continuing(EQUAL, Resume.IDS))
    kept.add(frame("one", (1,)))
    assert budget.used_bytes == 0
    assert kept.resumable is Resumable.TENANT
