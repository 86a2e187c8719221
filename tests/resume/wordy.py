"""A deterministic engine, as pools of an edge: token i is a function of the prompt and of i, wherever it is made."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from node_agent.border.gate import Answer
from node_agent.uplink.sending import Sendable
from orchestrator.engines.generation import Generation, Resume
from orchestrator.engines.identity import Continuing
from orchestrator.ledger.usage import PoolCounts
from orchestrator.policy.ids import ReplicaId, digest_of
from orchestrator.wire.frames import Accepted, Broken, Done, Refused, StreamFrame, Tokens

TOKENS = 8
PROMPT_TOKENS = 10
EQUAL = Continuing(digest_of(b"equal"), Resume.IDS)
OTHER = Continuing(digest_of(b"other"), Resume.IDS)


def token(generation: Generation, index: int) -> int:
    """The token at a place of an answer."""
    asked = "\x00".join(message.text for message in generation.messages)
    return int.from_bytes(hashlib.sha256(f"{asked}\x00{index}".encode()).digest()[:2], "big")


def word(generation: Generation, index: int) -> str:
    """The text of that token. Every third is held back until the next."""
    return "" if index % 3 == 2 else "".join(f"w{token(generation, i)} " for i in since(index))


def since(index: int) -> range:
    """The tokens whose text is out with this one."""
    return range(index - 1 if index % 3 == 0 and index else index, index + 1)


def whole(generation: Generation) -> str:
    """The undisturbed answer."""
    return "".join(word(generation, index) for index in range(TOKENS))


@dataclass
class Wordy:
    """One pool. It answers its attempts in turn as `cuts` says: after how many tokens of the answer, and by what."""

    cuts: Sequence[tuple[int, str] | str | None] = ()
    """A place and a code, or the code of a refusal; None, and everything beyond them, is an answer to its end."""
    continuing: Continuing = EQUAL
    says: Continuing | None = None
    """What it says that it is, where that is something else."""
    got: list[Sendable] = field(default_factory=list)
    after: Callable[[], object] = lambda: None
    """Called at each cut."""

    def __call__(self, sendable: Sendable) -> list[StreamFrame]:
        cut = self.cuts[len(self.got)] if len(self.got) < len(self.cuts) else None
        self.got.append(sendable)
        attempt, wanted, said = sendable.attempt, sendable.generation, sendable.generation.said
        if isinstance(cut, str):
            return [Refused(1, attempt, cut, "Not now.")]
        if said is not None and self.continuing != Continuing(said.identity, said.by):
            return [Refused(1, attempt, "identity_mismatch", "Not equal.")]
        start = wanted.first_token()
        if said is not None and said.by is Resume.IDS:
            assert said.ids == tuple(token(wanted, index) for index in range(start))
        end = TOKENS if cut is None else cut[0]
        frames: list[StreamFrame] = [Accepted(1, attempt, ReplicaId("r"), self.says or self.continuing)]
        for index in range(start, end):
            ids = (token(wanted, index),) if self.continuing.by is Resume.IDS else ()
            frames.append(Tokens(1, attempt, index - start, 1, word(wanted, index), ids))
        made = end - start
        if cut is None:
            return [*frames, Done(1, attempt, "length", PoolCounts(PROMPT_TOKENS, 0, made, made))]
        self.after()
        return [*frames, Broken(1, attempt, cut[1], "It died.", PoolCounts(PROMPT_TOKENS, 0, made, made))]


@dataclass(frozen=True)
class Read:
    """An answer, read to its end."""

    answer: Answer
    frames: list[Any]

    @property
    def text(self) -> str:
        return "".join(frame.text for frame in self.frames if isinstance(frame, Tokens))

    @property
    def end(self) -> Done | Broken:
        last = self.frames[-1]
        assert isinstance(last, Done | Broken)
        return last

    @property
    def places(self) -> list[int]:
        """Where in the whole answer each token says that it stands."""
        found = [frame for frame in self.frames if isinstance(frame, Tokens)]
        return [place for frame in found for place in range(frame.first, frame.first + frame.count)]


async def read(answer: Answer) -> Read:
    return Read(answer, [frame async for frame in answer.frames])
