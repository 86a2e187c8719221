"""The values that every engine speaks: one generation in, a stream of events out. Pure.

An engine takes a `Generation` and yields `Started` at most once (an engine that learns the prompt count only at
the end yields none), then `Delta`s, then exactly one of `Finished`, `Refused` or
`Failed`. A stream that ends without one of these three was cut.
"""

from __future__ import annotations

from enum import Enum
from operator import attrgetter

import msgspec

from orchestrator.policy.ids import Digest
from orchestrator.policy.ids import ModelId as ModelId


class Role(Enum):
    """Who speaks in a message of the conversation."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    PROMPT = "prompt"
    """Nobody: a raw text to be continued, which no template is laid round. It is the only message then."""


_TEXT = attrgetter("text")
# A member costs several times as much by way of its enumeration.
_PROMPT = Role.PROMPT


class Message(msgspec.Struct, frozen=True):
    """One turn of the conversation. Payload: never logged, so its repr holds no text."""

    role: Role
    text: str = msgspec.field(name="content")
    """Named so where it is written for an engine."""

    def __repr__(self) -> str:
        return f"Message(role={self.role.value}, chars={len(self.text)})"


class Sampling(msgspec.Struct, frozen=True):
    """How tokens are drawn."""

    temperature: float = 1.0
    """0 is greedy; the most is 2."""
    top_p: float = 1.0
    """Nucleus mass, in (0, 1]."""
    seed: int | None = None
    """64-bit unsigned. With a seed each draw depends on (seed, position) only; without one the engine chooses."""
    stop: tuple[str, ...] = ()
    """Strings that end the answer and are not part of it; at most four."""
    max_tokens: int | None = None
    """The most tokens to generate; None is the room left in the context."""
    ignore_eos: bool = False
    """Whether the model never ends the answer: only its length and stop strings do."""
    min_tokens: int = 0
    """Tokens of the answer before the model may end it; `max_tokens` at most. Stop strings end it anywhere."""

    @property
    def ends_from(self) -> int | None:
        """How many tokens the answer has before the model may end it; None where it never may."""
        return None if self.ignore_eos else self.min_tokens

    def __repr__(self) -> str:
        # Stop strings are the tenant's words.
        return f"Sampling(temperature={self.temperature}, top_p={self.top_p}, stops={len(self.stop)})"


class Resume(Enum):
    """What an engine can take up an answer by that another one began."""

    NONE = "none"
    TEXT = "text"
    """It reads the text again, so that its tokens may be cut in other places."""
    IDS = "ids"
    """It goes on from the very tokens."""


class Said(msgspec.Struct, frozen=True):
    """What was said already of an answer that is continued. Payload: its repr holds none."""

    by: Resume
    identity: Digest
    """Of the model that said it: only an equal one goes on."""
    tokens: int
    """They count against `max_tokens`, and are not generated again."""
    text: str
    """What the tenant has. It ends before what was held back."""
    ids: tuple[int, ...] = ()
    """Every token, where it is continued by ids."""

    def __repr__(self) -> str:
        return f"Said(by={self.by.value}, tokens={self.tokens}, chars={len(self.text)})"


class Generation(msgspec.Struct, frozen=True):
    """One request as an engine sees it: no tenant, no label, no law."""

    model: ModelId
    messages: tuple[Message, ...]
    sampling: Sampling
    said: Said | None = None
    """Where it goes on with an answer that was cut."""

    def first_token(self) -> int:
        """Return where in the whole answer the first token of this generation stands."""
        return 0 if self.said is None else self.said.tokens

    def of_prompt(self, tokens: int) -> int:
        """Return how many of the `tokens` that an engine read were the prompt, where it read what was said as well."""
        return max(0, tokens - self.first_token())

    @property
    def raw_prompt(self) -> str | None:
        """The text to be continued as it stands, or None for a conversation. Payload."""
        messages = self.messages
        return messages[0].text if len(messages) == 1 and messages[0].role is _PROMPT else None

    @property
    def mixed(self) -> bool:
        """Whether a raw prompt stands beside other messages, which means nothing."""
        messages = self.messages
        if len(messages) > 1:
            for message in messages:
                if message.role is _PROMPT:
                    return True
        return False

    def payload(self) -> list[str]:
        """Return the text of every message, and of what was said already. Payload."""
        payload: list[str] = [*map(_TEXT, self.messages)]
        if self.said is not None:
            payload.append(self.said.text)
        return payload

    def texts(self) -> tuple[tuple[str, str], ...]:
        """Return (role, text) of every message, and of what was said already: each is an input. Payload."""
        texts = tuple([(message.role._value_, message.text) for message in self.messages])
        return texts if self.said is None else (*texts, (Role.ASSISTANT.value, self.said.text))


class Started(msgspec.Struct, frozen=True):
    """The prompt was rendered, counted and accepted."""

    prompt_tokens: int


class Delta(msgspec.Struct, frozen=True):
    """Some more of the answer. Payload: its repr holds no text."""

    text: str
    """May be empty: an incomplete UTF-8 sequence or the head of a stop string is held back."""
    token_ids: tuple[int, ...]
    """Ids of the tokens behind this delta, where the engine tells them."""
    tokens: int
    """How many tokens this delta accounts for. Equal to len(token_ids) where ids are told."""

    def __repr__(self) -> str:
        return f"Delta(chars={len(self.text)}, tokens={self.tokens})"


class FinishReason(Enum):
    """Why an answer ended well."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"


class Finished(msgspec.Struct, frozen=True):
    """The answer is complete (or was cancelled as asked)."""

    reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    """Tokens generated, as the engine counts them."""
    cached_tokens: int = 0


class Refused(msgspec.Struct, frozen=True):
    """The engine did no work. `code` is of the error catalogue; `detail` is a sentence without payload."""

    code: str
    """One of: context_length_exceeded, engine_busy, model_not_served, bad_generation."""
    detail: str
    param: str | None = None


class Failed(msgspec.Struct, frozen=True):
    """The engine died or misbehaved after it may have begun. Never a silent end."""

    code: str
    """One of: engine_unreachable (nothing was sent), engine_failed, engine_protocol."""
    detail: str


EngineEvent = Started | Delta | Finished | Refused | Failed
