"""The running answers and one step of them: who joins, who decodes, who leaves. No thread, no clock, no sink.

Rows 0 to n-1 decode together; at most one more, the last row, is still taking in its prompt. A step is a `decode` of
all the former and a `prefill` of one chunk of the latter, so a long prompt delays running answers by one chunk a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NewType

import numpy as np
import numpy.typing as npt

from orchestrator.engines.generation import Delta, FinishReason
from scheduler.pools.engine.detokenise import AnswerText
from scheduler.pools.engine.model import ServedModel
from scheduler.pools.engine.prompt import Prompt
from scheduler.pools.engine.resume import end_of
from scheduler.pools.engine.sampling import Drawing, may_end, next_token

Handle = NewType("Handle", int)
"""One submitted request; never reused by its engine."""

PREFILL_CHUNK_TOKENS = 32
"""How much of a prompt is taken in between two tokens of the running answers. The same whether others run or not, so
that a prompt's numbers never depend on them."""


@dataclass(slots=True)
class Row:
    """One running answer."""

    handle: Handle
    prompt: Prompt
    drawing: Drawing
    text: AnswerText
    fed: int = 0
    """Tokens whose keys and values are in the cache."""
    generated: int = 0
    """Tokens of the answer, those included that another replica generated before it was cut."""
    owed: str = ""
    """Text that goes out with the next token: of tokens that were said before. Payload."""
    last_id: int = -1
    """The newest token, which is fed next."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one step gave one answer. A finished answer has left the batch already."""

    row: Row
    delta: Delta
    finished: FinishReason | None


class Batch:
    """Up to `slots` answers that join and leave between steps. Used by one thread."""

    def __init__(self, model: ServedModel, slots: int) -> None:
        self._model = model
        self._slots = slots
        self._decoding: list[Row] = []
        self._joining: Row | None = None

    def __len__(self) -> int:
        return len(self._decoding) + (self._joining is not None)

    @property
    def can_join(self) -> bool:
        """Whether a slot is free and no other answer is joining."""
        return self._joining is None and len(self._decoding) < self._slots

    @property
    def kv_tokens(self) -> int:
        """Tokens whose keys and values are held."""
        joining = self._joining.fed if self._joining is not None else 0
        return joining + sum(row.fed for row in self._decoding)

    def join(self, row: Row) -> None:
        """Give a new answer the next slot. Only where `can_join`."""
        if not self.can_join:
            raise RuntimeError("no slot is free to join")
        self._joining = row

    def leave(self, handle: Handle) -> Row | None:
        """Free the slot of an answer; None when it runs no more."""
        if self._joining is not None and self._joining.handle == handle:
            row, self._joining = self._joining, None
            return row
        for index, row in enumerate(self._decoding):
            if row.handle == handle:
                self._close_gap(index)
                return row
        return None

    def decode(self) -> list[Step]:
        """One token for every answer that has taken in its prompt."""
        if not self._decoding:
            return []
        rows = list(self._decoding)
        logits = self._model.decode([row.last_id for row in rows], [row.fed for row in rows])
        steps = []
        for row, row_logits in zip(rows, logits, strict=True):
            row.fed += 1
            steps.append(self._accept(row, self._draw(row, row_logits)))
        for step in steps:
            if step.finished is not None:
                self.leave(step.row.handle)
        return steps

    def prefill(self) -> Step | None:
        """One chunk of the joining answer's prompt; its first token when that was the last chunk."""
        row = self._joining
        if row is None:
            return None
        chunk = row.prompt.read_ids[row.fed : row.fed + PREFILL_CHUNK_TOKENS]
        logits = self._model.prefill(len(self._decoding), chunk, row.fed)
        row.fed += len(chunk)
        if row.fed < len(row.prompt.read_ids):
            return None
        step = self._accept(row, self._draw(row, logits))
        self._joining = None
        if step.finished is None:
            self._decoding.append(row)
        return step

    def _draw(self, row: Row, logits: npt.NDArray[np.float32]) -> int:
        barred: tuple[int, ...] = ()
        if not may_end(row.drawing.ends_from, row.generated):
            # A configuration may name an end that the model's head does not know.
            barred = tuple(end_id for end_id in self._model.end_ids if end_id < len(logits))
        return next_token(logits, row.drawing, row.fed, barred)

    def _accept(self, row: Row, token_id: int) -> Step:
        row.last_id = token_id
        row.generated += 1
        text, row.owed = row.owed + row.text.push(token_id), ""
        reason = end_of(token_id, row.generated, row.text, self._model.end_ids, row.prompt.tokens_max)
        if reason is not None:
            text += row.text.rest()
        return Step(row, Delta(text, (token_id,), 1), reason)

    def _close_gap(self, index: int) -> None:
        """Take a decoding row out; the last one moves into its place, and the joining row follows."""
        last = len(self._decoding) - 1
        moved = self._decoding.pop()
        if index != last:
            self._model.slots.move(last, index, moved.fed)
            self._decoding[index] = moved
        if self._joining is not None and self._joining.fed:
            self._model.slots.move(last + 1, last, self._joining.fed)
