"""What follows the events that a reader has learned: whatever differs from them is read as it always is."""

from __future__ import annotations

import pytest

from orchestrator.engines.chunks import AnswerReader, UsageExpectation
from tests.engines.test_chunks_read_together import VLLM, by_themselves, event, joined

BEFORE, AFTER = VLLM
TEXT, EMPTY = event(BEFORE + b"a" + AFTER), event(BEFORE + AFTER)
STOP, DONE = event(b'{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}'), event(b"[DONE]")
OTHER_CHOICE = event(BEFORE.replace(b'"index":0', b'"index":1') + b"b" + AFTER)
OTHER_REASON = event(BEFORE + b"b" + AFTER.replace(b'reason":null', b'reason":"xy"'))
TAILS = {
    "another choice, as long": [OTHER_CHOICE],
    "another reason, as long": [OTHER_REASON],
    "a text after an error": [event(b'{"error":{}}'), TEXT],
    "a text after the end": [STOP, TEXT],
    "a text after all": [STOP, DONE, TEXT],
    "an event inside of a line": [b'data: {"x":', TEXT],
    "an event inside of an event": [b"data: 1\n", TEXT],
    "an event with a name": [b"event: x\n", TEXT],
    "after half an end of a line": [TEXT[:-1] + b"\r", TEXT],
    "no text": [EMPTY, TEXT],
    "more of the same": [TEXT, TEXT],
}


@pytest.mark.parametrize("together", [1, 2, 3])
@pytest.mark.parametrize("tail", TAILS.values(), ids=TAILS)
def test_what_follows_known_events_is_read_as_if_none_were_known(tail: list[bytes], together: int) -> None:
    parts = [TEXT] * 7 + tail + [TEXT] * 4 + [STOP, DONE]
    reader = AnswerReader(line_bytes_max=2_000, usage=UsageExpectation.OPTIONAL)
    told = [one for part in parts[:7] for one in reader.feed_parts([part])]
    assert reader._alike is not None
    rest = parts[7:]
    for at in range(0, len(rest), together):
        told += reader.feed_parts(rest[at : at + together])
    assert joined(told + reader.feed_parts([])) == joined(by_themselves(b"".join(parts)))
