"""What a second request with a key is told, and who answers for a key."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_agent.idempotency.rules import (
    KEEP_MS,
    Answer,
    BodyDigest,
    Held,
    KeyDigest,
    State,
    judge,
    owner,
    well_formed,
)
from node_agent.idempotency.sealing import Sealer
from orchestrator.policy.ids import EdgeId, RequestId, TenantId

NOW_MS = 1_790_000_000_000
BODY, OTHER = BodyDigest(b"b" * 32), BodyDigest(b"o" * 32)
FIRST = RequestId("req_" + "1" * 32)

TABLE = [
    # state, here, same body, answer
    (State.RUNNING, True, True, Answer.RUNNING),
    (State.RUNNING, False, True, Answer.UNCERTAIN),
    (State.ENDED, False, True, Answer.NOT_KEPT),
    (State.KEPT, False, True, Answer.REPLAY),
    (State.RUNNING, True, False, Answer.OTHER_BODY),
    (State.RUNNING, False, False, Answer.OTHER_BODY),
    (State.ENDED, False, False, Answer.OTHER_BODY),
    (State.KEPT, False, False, Answer.OTHER_BODY),
]


@pytest.mark.parametrize(("state", "here", "same", "answer"), TABLE)
def test_each_state_has_its_answer_until_its_time_is_over(
    state: State, here: bool, same: bool, answer: Answer
) -> None:
    body = BODY if same else OTHER
    held = Held(FIRST, BODY, state, NOW_MS + KEEP_MS)
    assert judge(held, body, NOW_MS, here=here) is answer
    assert judge(held, body, NOW_MS + KEEP_MS - 1, here=here) is answer
    # What runs here is told of for as long as it runs.
    assert judge(held, body, NOW_MS + KEEP_MS, here=here) is (answer if here else Answer.GO)


def test_a_key_that_nobody_has_is_free() -> None:
    assert judge(None, BODY, NOW_MS, here=False) is Answer.GO


@given(st.text(max_size=300))
def test_a_key_is_printable_ascii_of_some_length(key: str) -> None:
    assert well_formed(key) is (1 <= len(key) <= 255 and key.isascii() and key.isprintable())


@given(st.lists(st.binary(min_size=32, max_size=32), min_size=1), st.integers(1, 8))
def test_a_key_has_one_owner_among_the_processes(keys: list[bytes], processes: int) -> None:
    for key in keys:
        assert 0 <= owner(KeyDigest(key), processes) < processes


def test_owners_share_the_keys_evenly() -> None:
    sealer = Sealer(b"secret", EdgeId("edge"))
    keys = [sealer.of(TenantId("acme"), "/v1", str(number), "", b"").key for number in range(4000)]
    assert min(Counter(owner(key, 4) for key in keys).values()) > 850
    with pytest.raises(ValueError, match="at least one"):
        owner(keys[0], 0)


WORD = st.text("ab", max_size=3)
PARTS = st.tuples(WORD, WORD, WORD, WORD, st.binary(max_size=3))


@given(PARTS, PARTS)
def test_digests_meet_only_where_all_that_they_name_is_the_same(
    one: tuple[str, str, str, str, bytes], other: tuple[str, str, str, str, bytes]
) -> None:
    sealer = Sealer(b"secret", EdgeId("edge"))
    a = sealer.of(TenantId(one[0]), *one[1:])
    b = sealer.of(TenantId(other[0]), *other[1:])
    assert (a.key == b.key) is (one[:3] == other[:3])
    assert (a.body == b.body) is (one[3:] == other[3:])
    assert (a.tenant == b.tenant) is (one[0] == other[0])
    assert len({bytes(a.key), bytes(a.body), bytes(a.tenant)}) == 3
