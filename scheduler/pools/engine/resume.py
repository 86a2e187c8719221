"""Taking up an answer that another replica of the same model began: its text, what of it is owed, whether it is over.

Pure. The tokens are the truth: the text that the tenant has must be what they read as, or the answer is not taken up.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

from orchestrator.engines.generation import FinishReason, Refused, Said, Sampling
from scheduler.pools.engine.detokenise import AnswerText
from scheduler.pools.engine.sampling import may_end


@dataclass(frozen=True, slots=True)
class Taken:
    """An answer that is taken up."""

    owed: str
    """Text of the tokens that were said, which the tenant does not have. Payload."""
    finished: FinishReason | None
    """Why nothing is left to say, where the last token was said already."""

    def __repr__(self) -> str:
        return f"Taken(owed={len(self.owed)})"


def end_of(
    token_id: int, generated: int, text: AnswerText, end_ids: Set[int], tokens_max: int
) -> FinishReason | None:
    """Return why an answer ends with this token, its `generated`-th, or None when it goes on."""
    if token_id in end_ids or text.stopped:
        return FinishReason.STOP
    return FinishReason.LENGTH if generated >= tokens_max else None


def take_up(
    text: AnswerText, said: Said, end_ids: Set[int], tokens_max: int, sampling: Sampling
) -> Taken | Refused:
    """Bring `text` to where the answer was cut. Refused where these tokens are not those of this model's answer."""
    parts: list[str] = []
    finished: FinishReason | None = None
    for number, token_id in enumerate(said.ids, 1):
        early = token_id in end_ids and not may_end(sampling.ends_from, number - 1)
        if early or finished is not None or not text.knows(token_id):
            return _unequal("The tokens that were said are not an answer of this model.")
        parts.append(text.push(token_id))
        finished = end_of(token_id, number, text, end_ids, tokens_max)
    if finished is not None:
        parts.append(text.rest())
    whole = "".join(parts)
    if not whole.startswith(said.text):
        return _unequal("The tokens that were said read as another text here.")
    return Taken(whole[len(said.text) :], finished)


def _unequal(sentence: str) -> Refused:
    return Refused("identity_mismatch", sentence)
