"""What an edge keeps of an answer, so that it can go on elsewhere when it is cut, and how it then goes on. Pure.

In memory only, within one budget for the whole edge. An answer beyond it, or of an engine that nobody can take over
from, is told to be cut when it is cut.
"""

from __future__ import annotations

from array import array

import msgspec

from orchestrator.engines.generation import Resume, Said
from orchestrator.engines.identity import NOT_CONTINUED, Continuing
from orchestrator.ledger.usage import Resumable
from orchestrator.placement.decide import Carried
from orchestrator.placement.fleet import Pool
from orchestrator.policy.ids import AttemptId, DecisionId
from orchestrator.policy.jurisdictions import Jurisdiction
from orchestrator.policy.labels import Effective
from orchestrator.policy.packs import Obligation
from orchestrator.wire.catalogue import Problem
from orchestrator.wire.deadlines import BETWEEN
from orchestrator.wire.frames import FRAME_BYTES, Tokens

RETAINED_BYTES_MAX = 64 << 20
"""Of prompts and answers, at one edge."""
STEP_BYTES = 1_024
"""An answer takes its share in such steps."""
MISBEHAVED = frozenset({"engine_protocol", "protocol_violation", "identity_mismatch"})
"""What cuts an attempt because its pool cannot be trusted with it: it gets no other of this request."""
AWAY = frozenset({"session_lost", "engine_unreachable", BETWEEN})
"""What cuts an attempt because there is no way to its pool, or no word from it: others come first."""
GOES_ON_AFTER = MISBEHAVED | AWAY | {"engine_failed", "no_replica", "draining"}
"""What cuts an attempt and is no doing of the tenant's, nor has used up the tenant's patience."""


# To find a member of an enum by its class takes longer than to compare it.
_IDS, _TEXT, _ENGINE, _TENANT = Resumable.IDS, Resumable.TEXT, Resumable.ENGINE, Resumable.TENANT
_BY = {Resume.IDS: _IDS, Resume.TEXT: _TEXT, Resume.NONE: _ENGINE}


class Retained(msgspec.Struct):
    """The bytes that all answers of an edge together may keep, and do. Each answer keeps within them by itself."""

    bytes_max: int
    used_bytes: int = 0


class Kept:
    """What is kept of one request and its answer. Payload: it has no repr of its own."""

    __slots__ = (
        "_budget",
        "_continuing",
        "_ids",
        "_left_bytes",
        "_taken_bytes",
        "_texts",
        "begun",
        "resumable",
        "tokens",
    )

    def __init__(self, budget: Retained, wanted: bool) -> None:
        self.begun = False
        """Whether the tenant has anything of the answer."""
        self.tokens = 0
        """How many tokens of the answer the tenant has."""
        self.resumable = _ENGINE if wanted else _TENANT
        """Until a replica says that it has an equal, nothing is known of one."""
        self._budget = budget
        self._continuing = NOT_CONTINUED
        self._texts: list[str] = []
        self._ids: array[int] | None = None
        self._taken_bytes = 0
        self._left_bytes = 0
        """Of what was taken, what nothing stands in yet: it is taken in steps, not by the token."""

    def accepted(self, continuing: Continuing) -> None:
        """The replica that begins the answer says what it is."""
        self._continuing = continuing
        if self.resumable is _ENGINE and continuing.identity is not None:
            self.resumable = _BY[continuing.by]

    def add(self, frame: Tokens) -> None:
        """The tenant gets some more of the answer. Called for every frame: it does little."""
        text, ids, count, resumable = frame.text, frame.ids, frame.count, self.resumable
        self.tokens += count
        if text or count:
            self.begun = True
        if resumable is not _IDS and resumable is not _TEXT:
            return
        if resumable is _IDS:
            if len(ids) != count:
                self._lose(_ENGINE)
                return
            if self._ids is None:
                self._ids = array("I", ids)
            else:
                self._ids.extend(ids)
        self._texts.append(text)
        # As much as the text may take: it is not encoded only to be counted.
        self._left_bytes -= FRAME_BYTES + 4 * len(ids) + (len(text) if text.isascii() else 4 * len(text))
        if self._left_bytes < 0:
            more = STEP_BYTES - self._left_bytes
            self._left_bytes += more
            self.take(more)

    def said(self) -> Said | None:
        """Return what another replica goes on from; None where nothing was said yet."""
        identity = self._continuing.identity
        if identity is None or not self.begun:
            return None
        return Said(self._continuing.by, identity, self.tokens, "".join(self._texts), tuple(self._ids or ()))

    def drop(self) -> None:
        """Keep nothing any more."""
        self._budget.used_bytes -= self._taken_bytes
        self._taken_bytes = 0
        if self._texts:
            self._texts = []
            self._ids = None

    def take(self, size_bytes: int) -> None:
        """Take so much of the budget, for the prompt or for what is said; where there is no more, keep nothing."""
        budget = self._budget
        if self.resumable is _TENANT:
            return
        if budget.used_bytes + size_bytes > budget.bytes_max:
            self._lose(Resumable.BUDGET)
        else:
            budget.used_bytes += size_bytes
            self._taken_bytes += size_bytes

    def _lose(self, why: Resumable) -> None:
        self.resumable = why
        self.drop()


class Continued(msgspec.Struct, frozen=True):
    """What an attempt that takes the place of a cut one is decided with, besides the request."""

    attempt: AttemptId
    """The one that was cut."""
    label: Effective | None
    """Of what was said; None where nothing was."""
    processed_in: frozenset[Jurisdiction] = frozenset()
    """Soil of every pool that said some of it."""
    duties: frozenset[Obligation] = frozenset()
    """Those that are done by headers of the answer, which have left."""

    def carried(self) -> Carried:
        """Return what the law is told of what was said."""
        return Carried(self.label, self.processed_in)


class Segment(msgspec.Struct):
    """A part of an answer that one attempt brought."""

    pool: Pool
    decision: DecisionId
    first_token: int
    tokens: int = 0

    def to_json(self) -> dict[str, object]:
        """Return what the tenant is told of it."""
        return {
            "pool": self.pool.id,
            "jurisdiction": ",".join(sorted(self.pool.place.soil())),
            "decision": self.decision,
            "first_token": self.first_token,
            "tokens": self.tokens,
        }


class Stopped(msgspec.Struct, frozen=True):
    """Why a cut answer did not go on."""

    reason: str
    """`cause` (what cut it), `tenant`, `budget`, `engine`, `law`, `identity`, `attempts`, or `pool`: none could now."""
    sentence: str
    rules: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """Return what the tenant is told of it."""
        told: dict[str, object] = {"reason": self.reason, "sentence": self.sentence}
        return {**told, "rules": list(self.rules)} if self.rules else told


_KEPT_NOT = {
    Resumable.TENANT: "The tenant asked that answers never go on elsewhere.",
    Resumable.BUDGET: "This edge could not keep what was said: its memory for that was full.",
    Resumable.ENGINE: "Nothing is known of the model that began the answer, or its engine goes on with none.",
}
_REASONS = {"residency_blocked": "law", "policy_newer": "law", "identity_mismatch": "identity"}


def kept_not(resumable: Resumable) -> Stopped | None:
    """Return why what is kept of an answer does not let it go on, or None when it does."""
    sentence = _KEPT_NOT.get(resumable)
    return None if sentence is None else Stopped(resumable.value, sentence)


def stopped_by(problem: Problem) -> Stopped:
    """Return why an answer did not go on, where no attempt could be made of it or none began."""
    rules = problem.rules or tuple(sorted({told.rule for told in problem.explanation}))
    return Stopped(_REASONS.get(problem.code, "pool"), problem.text, rules)
