"""What moves when one thing changes: every case is placed twice by the live code, before and after. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.bundles.assemble import Bundle
from orchestrator.cli.amounts import money
from orchestrator.cli.law.explain import CannotExplain, Case, edge_of, ground_of, status_of
from orchestrator.cli.replay.changes import Change, Views, settings_in
from orchestrator.evidence.canonical import JsonValue
from orchestrator.placement.decide import Ground, place_permitted
from orchestrator.placement.pick import Candidate, Placement
from orchestrator.policy.ids import EdgeId, PoolId

WHATIF_VERSION = 1
NOT_WHOLE = "the record does not hold what a decision is made again from"


class Book:
    """A bundle and the grounds of its edges: the law is compiled again only when a date is reached."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.currency = settings_in(bundle).currency
        self._grounds: dict[EdgeId, Ground] = {}

    def ground(self, edge: EdgeId, now_ms: int) -> Ground:
        """Return what a decision of `edge` stands on. Raises CannotExplain for an edge that it does not have."""
        found = self._grounds.get(edge)
        if found is None or not found.table.made_ms <= now_ms < found.table.valid_until_ms:
            found = self._grounds[edge] = ground_of(self.bundle, edge_of(self.bundle, edge), now_ms)
        return found


@dataclass(frozen=True, slots=True)
class Asked:
    """One case with its name, and the book that it stood on."""

    name: str
    case: Case
    book: Book
    after: Book
    """The same after the change."""
    recorded: PoolId | None = None
    """Where a recorded decision went."""
    is_record: bool = False


@dataclass(frozen=True, slots=True)
class Placed:
    """What became of a case."""

    placement: Placement = field(repr=False)
    pool: PoolId | None
    status: int
    total_pico: int | None
    """J of the chosen pool."""
    spend_pico: int | None
    """Of J, what the operator pays for tokens and egress."""
    runner_up: PoolId | None
    gap_pico: int | None

    def to_json(self) -> dict[str, JsonValue]:
        """Return it; money as strings."""
        return {
            "pool": self.pool,
            "status": self.status,
            "total_pico": _text(self.total_pico),
            "spend_pico": _text(self.spend_pico),
            "runner_up": self.runner_up,
            "gap_pico": _text(self.gap_pico),
        }


@dataclass(frozen=True, slots=True)
class Move:
    """One case, before and after."""

    asked: Asked
    before: Placed
    after: Placed
    why: str

    @property
    def moved(self) -> bool:
        """Whether it goes elsewhere, is newly refused or newly allowed."""
        return self.before.pool != self.after.pool


def move(asked: Asked, change: Change) -> Move:
    """Place one case before and after. Raises CannotExplain."""
    try:
        before = _place(asked.case, asked.book, asked.case.views)
        after = _place(asked.case, asked.after, change.to_views(asked.case.views))
    except (TypeError, AttributeError):
        if not asked.is_record:
            raise
        # A file of records may hold anything: text where a number belongs comes this far.
        raise CannotExplain(f"--trace: {asked.name}: {NOT_WHOLE}") from None
    return Move(asked, before, after, _why(before, after, asked.book.currency))


def moves_to_json(moves: Sequence[Move], change: Change, skipped: Mapping[str, int]) -> dict[str, JsonValue]:
    """Return every case and the summary."""
    return {
        "v": WHATIF_VERSION,
        "change": {"option": change.option, "value": change.value},
        "requests": [_move_to_json(one) for one in moves],
        "summary": _summary(moves, skipped),
    }


def _place(case: Case, book: Book, views: Views) -> Placed:
    ground = case.ground(book.ground(case.edge, case.now_ms))
    placement = place_permitted(ground, case.facts, case.request, views, case.now_ms, case.chance)
    chosen, second = placement.chosen, placement.runner_up()
    status = status_of(case.request, bool(placement.permitted()), placement)
    if chosen is None or chosen.terms is None:
        return Placed(placement, None, status, None, None, None, None)
    total = chosen.terms.total_pico
    gap = None if second is None or second.terms is None else second.terms.total_pico - total
    spend = chosen.terms.tokens_pico + chosen.terms.egress_pico
    return Placed(
        placement, chosen.pool.id, status, total, spend, None if second is None else second.pool.id, gap
    )


def _why(before: Placed, after: Placed, currency: str) -> str:
    """Say in one sentence why it goes where it goes now."""
    if after.pool is None:
        if before.pool is None:
            return "refused as before" if before.status == after.status else f"refused: {_refusal(after)}"
        return f"{_gone(before.pool, after)}; {_refusal(after)}"
    if before.pool is None:
        return f"{after.pool} was {_words(_candidate(before.placement, after.pool))}"
    if before.pool == after.pool:
        difference = (after.total_pico or 0) - (before.total_pico or 0)
        if difference == 0:
            return "stays, at the same cost"
        return f"stays, and costs {money(abs(difference), currency)} {'more' if difference > 0 else 'less'}"
    old, new = _candidate(after.placement, before.pool), _candidate(before.placement, after.pool)
    if old is None or old.terms is None:
        return _gone(before.pool, after)
    was = f"{after.pool} was {_words(new)}, and " if new is None or new.terms is None else ""
    gain = old.terms.total_pico - (after.total_pico or 0)
    if gain < 0:
        return f"{was}{after.pool} costs {money(-gain, currency)} more, within epsilon of {before.pool}: chance chose"
    return f"{was}{after.pool} costs {money(gain, currency)} less than {before.pool}"


def _gone(pool: PoolId, after: Placed) -> str:
    return f"{pool} is {_words(_candidate(after.placement, pool))}"


def _refusal(placed: Placed) -> str:
    counts = ", ".join(f"{count} {drop.replace('_', ' ')}" for drop, count in placed.placement.counts().items())
    return f"no pool is left ({counts or 'none is declared'})"


def _words(candidate: Candidate | None) -> str:
    """Say why a pool is no candidate."""
    if candidate is None:
        return "not declared"
    if candidate.drop is None:
        return "a candidate"
    if not candidate.verdict.allowed:
        return f"not permitted by {', '.join(candidate.verdict.rules)}"
    return candidate.drop.value.replace("_", " ")


def _candidate(placement: Placement, pool: PoolId) -> Candidate | None:
    return next((one for one in placement.candidates if one.pool.id == pool), None)


def _move_to_json(one: Move) -> dict[str, JsonValue]:
    asked = one.asked
    return {
        "name": asked.name,
        "source": "record" if asked.is_record else "request",
        "edge": asked.case.edge,
        "tenant": asked.case.tenant,
        "model": asked.case.request.model,
        "at_ms": asked.case.now_ms,
        "recorded": asked.recorded,
        "before": one.before.to_json(),
        "after": one.after.to_json(),
        "moved": one.moved,
        "why": one.why,
    }


def _summary(moves: Sequence[Move], skipped: Mapping[str, int]) -> dict[str, JsonValue]:
    counts = Counter((one.before.pool, one.after.pool) for one in moves if one.moved)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0][0] or "", item[0][1] or ""))
    both = [one for one in moves if one.before.pool is not None and one.after.pool is not None]
    records = [one for one in moves if one.asked.is_record]
    return {
        "requests": len(moves),
        "same": sum(1 for one in moves if not one.moved),
        "moves": [{"from": source, "to": target, "count": count} for (source, target), count in ordered],
        "newly_refused": sum(1 for one in moves if one.before.pool is not None and one.after.pool is None),
        "newly_allowed": sum(1 for one in moves if one.before.pool is None and one.after.pool is not None),
        "placed_both": len(both),
        "currency": moves[0].asked.book.currency if moves else None,
        # Of those that are placed both times: what is refused costs nothing, and saves nothing.
        "cost": _difference((one.before.spend_pico or 0, one.after.spend_pico or 0) for one in both),
        "j": _difference((one.before.total_pico or 0, one.after.total_pico or 0) for one in both),
        "differs_from_record": sum(1 for one in records if one.before.pool != one.asked.recorded),
        "skipped": dict[str, JsonValue](skipped),
    }


def _difference(pairs: Iterable[tuple[int, int]]) -> dict[str, JsonValue]:
    listed = list(pairs)
    before, after = sum(one for one, _ in listed), sum(one for _, one in listed)
    return {"before_pico": str(before), "after_pico": str(after), "difference_pico": str(after - before)}


def _text(amount: int | None) -> str | None:
    return None if amount is None else str(amount)
