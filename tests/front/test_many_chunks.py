"""A body in chunks costs what its bytes cost: whoever cuts it into crumbs is told, and soon."""

from __future__ import annotations

from pathlib import Path

import pytest

from node_agent.front import framing
from node_agent.front.framing import BYTES_A_CHUNK, CHUNKS_MAX, Body, Malformed
from tests.front.room import ACME, CHAT, chat_body, done, request_bytes, room_in, saying, tokens

CRUMB = b"1\r\n \r\n"
END = b"0\r\n\r\n"


def chunk(size: int) -> bytes:
    return b"%x\r\n%b\r\n" % (size, b" " * size)


def read(data: bytes, piece: int) -> tuple[bytes, bool]:
    """Read it in pieces of so many bytes. Returns the body and whether it ended. Raises Malformed."""
    body, got, held = Body(None), bytearray(), b""
    for at in range(0, len(data), piece):
        held += data[at : at + piece]
        part, taken = body.take(held)
        got += part
        held = held[taken:]
    return bytes(got), body.ended


@pytest.mark.parametrize("piece", [1, 7, 65_536])
def test_any_body_may_come_in_so_many_chunks_and_a_long_one_in_more(piece: int) -> None:
    assert read(CRUMB * (CHUNKS_MAX - 1) + END, piece) == (b" " * (CHUNKS_MAX - 1), True)
    more = 2 * CHUNKS_MAX
    assert read(chunk(BYTES_A_CHUNK) * more + END, piece) == (b" " * (more * BYTES_A_CHUNK), True)


@pytest.mark.parametrize("piece", [1, 7, 65_536])
def test_what_comes_in_more_is_refused_wherever_it_is_cut(piece: int) -> None:
    allowed = CHUNKS_MAX * BYTES_A_CHUNK // (BYTES_A_CHUNK - 1)
    assert read(CRUMB * allowed, piece) == (b" " * allowed, False)
    with pytest.raises(Malformed) as found:
        read(CRUMB * (allowed + 2), piece)
    assert found.value.problem.entry.code == "body_too_large"


def test_crumbs_are_looked_at_no_further_than_that(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counting:
        looks = 0

        def match(self, data: bytes, at: int) -> object:
            self.looks += 1
            return line.match(data, at)

    line, counting = framing._CHUNK_LINE, Counting()
    monkeypatch.setattr(framing, "_CHUNK_LINE", counting)
    with pytest.raises(Malformed):
        Body(None).take(CRUMB * 100_000)
    assert counting.looks < 2 * CHUNKS_MAX


@pytest.mark.parametrize(
    ("key", "status", "code"), [(ACME.text(), 413, "body_too_large"), ("no", 401, "invalid_api_key")]
)
async def test_who_sends_crumbs_is_told_what_to_do(tmp_path: Path, key: str, status: int, code: str) -> None:
    headers = [("Host", "e"), ("Content-Type", "application/json"), ("Transfer-Encoding", "chunked")]
    head = request_bytes("POST", CHAT, [*headers, ("Authorization", f"Bearer {key}")])
    async with room_in(tmp_path, saying(tokens("ok"), done()), body_bytes_max=1 << 20) as room:
        reply = await room.raw(head + CRUMB * 40_000)
        error = reply.error()
        assert (reply.status, error["code"]) == (status, code)
        assert (code == "body_too_large") == ("Send larger chunks, or a Content-Length." in error["message"])
        assert room.gate.asked == []
        body = chat_body()
        crumbs = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
        assert len(body) < CHUNKS_MAX
        answer = await room.raw(head.replace(b"Host: e", b"Host: e\r\nConnection: close") + crumbs + END)
        assert answer.status == (200 if status == 413 else 401)
