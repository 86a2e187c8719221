"""The requests of the benchmark, the same for every system, and the check that an answer is right."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

CHAT = "/v1/chat/completions"
PROMPT = "Write a long story about a lighthouse keeper and the tide."
TOKENS = 100
CHECK_S = 30.0
ANSWER_BYTES_MAX = 8 << 20


class WrongAnswer(Exception):
    """An answer is not the one that the engine gives."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, ready to be sent. Its repr shows no header: one of them is a key."""

    host: str
    port: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)

    @property
    def url(self) -> str:
        """Where it goes."""
        return f"http://{self.host}:{self.port}{CHAT}"

    def raw(self, connection: str = "keep-alive") -> bytes:
        """Return the bytes of it on a connection."""
        lines = [f"POST {CHAT} HTTP/1.1", f"host: {self.host}:{self.port}", f"connection: {connection}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        lines += [f"content-length: {len(self.body)}", "", ""]
        return "\r\n".join(lines).encode("latin-1") + self.body


def body_of(model: str, *, stream: bool, tokens: int, prompt: str = PROMPT, pace_ms: int = 0) -> bytes:
    """Return the body that asks a model for so many tokens; `pace_ms` is what the engine reads from `seed`."""
    asked: dict[str, object] = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "stream": stream,
    }
    if pace_ms:
        asked["seed"] = pace_ms
    return msgspec.json.encode(asked)


def text_of(tokens: int) -> str:
    """Return the text that the engine answers with."""
    return "".join(f" tok{number % 100:02}" for number in range(tokens))


async def checked(ask: Ask, tokens: int) -> int:
    """Send one request and check its answer to the last token. Returns the bytes of the answer.

    Raises WrongAnswer and OSError.
    """
    try:
        async with asyncio.timeout(CHECK_S):
            reader, writer = await asyncio.open_connection(ask.host, ask.port, limit=ANSWER_BYTES_MAX)
            try:
                writer.write(ask.raw("close"))
                answer = await reader.read(-1)
            finally:
                writer.close()
    except TimeoutError:
        raise WrongAnswer(f"no whole answer within {CHECK_S:.0f} s") from None
    check(answer, tokens)
    return len(answer)


def check(answer: bytes, tokens: int) -> None:
    """Check a whole answer with its head: 200, the engine's text, and `[DONE]` where it streams. Raises WrongAnswer."""
    head, _, body = answer.partition(b"\r\n\r\n")
    status = head[9:12]
    if status != b"200":
        raise WrongAnswer(f"HTTP {status.decode('latin-1')}: {body[:400].decode('utf-8', 'replace')}")
    lines = head.lower().split(b"\r\n")
    if any(line.startswith(b"transfer-encoding:") for line in lines):
        body = _dechunked(body)
    streams = any(line.startswith(b"content-type: text/event-stream") for line in lines)
    text = _streamed_text(body) if streams else _whole_text(body)
    if text != text_of(tokens):
        raise WrongAnswer(f"the answer does not hold the {tokens} tokens of the engine: {text[:60]!r}")


def _streamed_text(body: bytes) -> str:
    events = [line.removeprefix(b"data: ") for line in body.split(b"\n") if line.startswith(b"data: ")]
    if not events or events[-1].strip() != b"[DONE]":
        last = events[-1][:200].decode("utf-8", "replace") if events else "nothing"
        raise WrongAnswer(f"the stream does not end with [DONE] but with {last}")
    parts: list[str] = []
    for event in events[:-1]:
        try:
            choices = msgspec.json.decode(event)["choices"]
            parts += [choice["delta"].get("content") or "" for choice in choices]
        except (msgspec.DecodeError, KeyError, TypeError, AttributeError):
            raise WrongAnswer(f"an event is no chunk of a completion: {event[:120]!r}") from None
    return "".join(parts)


def _whole_text(body: bytes) -> str:
    try:
        return str(msgspec.json.decode(body)["choices"][0]["message"]["content"])
    except (msgspec.DecodeError, KeyError, TypeError, IndexError):
        raise WrongAnswer(f"the answer is no completion: {body[:120]!r}") from None


def _dechunked(body: bytes) -> bytes:
    parts: list[bytes] = []
    at = 0
    while True:
        end = body.find(b"\r\n", at)
        if end < 0:
            raise WrongAnswer("the answer ends in the middle")
        size = int(body[at:end].split(b";")[0], 16)
        if not size:
            return b"".join(parts)
        parts.append(body[end + 2 : end + 2 + size])
        at = end + 2 + size + 2
