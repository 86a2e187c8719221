"""What both sides' records and the engines' journals say of a scenario, held against what the tenants saw."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.spool.segments import list_segments, scan_file
from tests.chaos.client import Ending, Mode, Told
from tests.chaos.declared import EDGES, GENERAL, HOME, PERSONAL, SITES, permitted, pool_of
from tests.chaos.load import Asked
from tests.chaos.stand import CANARIES, Stand, program_of

Json = dict[str, Any]
TOLD_MAX = 8
"""Sentences kept of each scenario."""


@dataclass(slots=True)
class Findings:
    """What does not fit, counted; and the first sentences."""

    violations: int = 0
    """Payloads that reached a place that the law does not allow, or a border they may not cross."""
    unrecorded: int = 0
    """Sends without exactly one decision record before them."""
    misbilled: int = 0
    """Requests whose usage records deliver another number of tokens than the tenant got, or bill twice."""
    lost: int = 0
    """Attempts that a killed program closed when it was back, without its count. Told only."""
    sends: int = 0
    sentences: list[str] = field(default_factory=list)

    def add(self, what: str, sentence: str) -> None:
        """Count one, and keep the sentence while there is room."""
        setattr(self, what, getattr(self, what) + 1)
        if len(self.sentences) < TOLD_MAX:
            self.sentences.append(sentence)

    @property
    def clean(self) -> bool:
        """Whether nothing was found that must not be."""
        return not (self.violations or self.unrecorded or self.misbilled)


@dataclass(slots=True)
class Seen:
    """The new records of a scenario."""

    decisions: list[Json]
    usages: list[Json]
    permits: list[Json]
    pool_usages: list[Json]
    starts: list[tuple[str, Json]]
    """With the pool of the engine."""


class Auditor:
    """Reads what is new since the last look. Reads files only."""

    def __init__(self, stand: Stand) -> None:
        self._stand = stand
        self._spools: dict[Path, tuple[int, int]] = {}
        self._journals: dict[Path, int] = {}
        self._crossed = [Counter(proxy.seen) for proxy in stand.proxies.values()]

    def look(self, asked: Iterable[Asked], spools: Iterable[Path] = ()) -> Findings:
        """Return what does not fit in what was written since the last look. `spools` are further ones of edges."""
        seen = self._new(spools)
        found = Findings(sends=len(seen.decisions))
        tries = [told for one in asked for told in one.tries]
        decided(seen, found)
        lawful(seen, found)
        self._crossings(seen, found)
        billed(seen, found, tries)
        return found

    def _new(self, further: Iterable[Path]) -> Seen:
        stand = self._stand
        edges = [spool for edge in EDGES for spool in stand.spools(edge)]
        records = [record for folder in (*edges, *further) for record in self._records(folder)]
        sites = [spool for site in SITES for spool in stand.spools(program_of(site))]
        theirs = [record for folder in sites for record in self._records(folder)]
        starts = [
            (pool, line)
            for pool in (HOME, *map(pool_of, SITES))
            for name in stand.engines(pool)
            for line in self._lines(stand.journal(name))
            if line["what"] == "start"
        ]
        return Seen(
            [one for one in records if one["kind"] == "decision" and one["outcome"] == "sent"],
            [one for one in records if one["kind"] == "usage"],
            [one for one in theirs if one["kind"] == "decision" and one["outcome"] == "permitted"],
            [one for one in theirs if one["kind"] == "usage"],
            starts,
        )

    def _records(self, folder: Path) -> Iterator[Json]:
        """Yield the records of a spool that were not read before."""
        if not folder.is_dir():
            return
        number, count = self._spools.get(folder, (0, 0))
        for segment in list_segments(folder):
            if segment.number < number:
                continue
            frames = scan_file(segment).frames
            passed = count if segment.number == number else 0
            for frame in frames[passed:]:
                if frame.kind in ("decision", "usage"):
                    yield json.loads(frame.data)
            self._spools[folder] = (segment.number, len(frames))

    def _lines(self, journal: Path) -> Iterator[Json]:
        if not journal.exists():
            return
        with journal.open("rb") as file:
            file.seek(self._journals.get(journal, 0))
            for line in file:
                if line.endswith(b"\n"):
                    self._journals[journal] = self._journals.get(journal, 0) + len(line)
                    yield json.loads(line)

    def _crossings(self, seen: Seen, found: Findings) -> None:
        """What the proxies saw pass. That they would see it is shown by what may pass."""
        general, personal = CANARIES
        now = [Counter(proxy.seen) for proxy in self._stand.proxies.values()]
        passed = sum((after - before for after, before in zip(now, self._crossed, strict=True)), Counter[bytes]())
        self._crossed = now
        for _ in range(passed[personal]):
            found.add("violations", "a proxy saw personal data on its way across the border")
        abroad = sum(1 for pool, line in seen.starts if pool != HOME and line["kind"] == GENERAL)
        if passed[general] < abroad:
            found.add("violations", f"blind proxies: they saw {passed[general]} of {abroad} prompts that crossed")


def decided(seen: Seen, found: Findings) -> None:
    """Every send has exactly one decision record, made before it."""
    for attempt, times in Counter(one["attempt"] for one in seen.decisions).items():
        if times != 1:
            found.add("unrecorded", f"attempt {attempt} has {times} decision records at the edge")
    attempts = {one["attempt"] for one in seen.decisions}
    for permit in seen.permits:
        if permit["attempt"] not in attempts:
            found.add("unrecorded", f"attempt {permit['attempt']} reached a site without a decision of an edge")
    moments_decided: dict[tuple[str, str], list[int]] = defaultdict(list)
    for one in seen.decisions:
        moments_decided[one["client_request"], one["pool"]].append(one["decided_ms"])
    begun: dict[tuple[str, str], list[int]] = defaultdict(list)
    for pool, line in seen.starts:
        begun[line["tag"], pool].append(line["at_ms"])
    for (tag, pool), moments in begun.items():
        before = sorted(moments_decided.get((tag, pool), ()))
        for at, moment in enumerate(sorted(moments)):
            if at >= len(before) or before[at] > moment:
                found.add("unrecorded", f"{tag} began in {pool} without a decision record before it")


def lawful(seen: Seen, found: Findings) -> None:
    """Every payload is in a place that the law allows for its kind."""
    for pool, line in seen.starts:
        kind = line["kind"] if line["kind"] in (GENERAL, PERSONAL) else PERSONAL
        if pool not in permitted(kind):
            found.add("violations", f"{line['tag']} ({line['kind']}) reached {pool}")


def billed(seen: Seen, found: Findings, tries: Sequence[Told]) -> None:
    """What the usage records deliver is what the tenant got, once."""
    for attempt, times in Counter(one["attempt"] for one in seen.usages).items():
        if times != 1:
            found.add("misbilled", f"attempt {attempt} has {times} usage records at the edge")
    ended(seen, found)
    by_request: dict[str, list[Json]] = defaultdict(list)
    for one in seen.usages:
        by_request[one["request"]].append(one)
    _keys_ran_once(seen, found, tries)
    for told in tries:
        if not told.request or told.replayed:
            continue
        usages = by_request.get(told.request, [])
        delivered = sum(one["counts"]["edge"]["delivered"] for one in usages if "edge" in one["counts"])
        if sum(1 for one in usages if one["outcome"] == "complete") > 1:
            found.add("misbilled", f"{told.plan.tag} was completed twice")
        if told.ending in (Ending.ANSWERED, Ending.CUT) and delivered != told.received:
            found.add("misbilled", f"{told.plan.tag} ({told.ending.value}): {told.received} came, {delivered} billed")
        # An edge that was killed before it noticed that the tenant hung up has lost its count.
        kept = all(one["outcome"] != "lost" for one in usages)
        if told.ending is Ending.CANCELLED and kept and delivered < told.received:
            found.add("misbilled", f"{told.plan.tag} hung up: {told.received} came, {delivered} billed")


def ended(seen: Seen, found: Findings) -> None:
    """Every attempt of an edge has its end, also where the edge was killed under it.

    A site closes what a killed edge left only when it has waited for that edge, which may be after the look.
    """
    found.lost += sum(1 for one in (*seen.usages, *seen.pool_usages) if one["outcome"] == "lost")
    closed = {one["attempt"] for one in seen.usages}
    for one in seen.decisions:
        if one["attempt"] not in closed:
            found.add("misbilled", f"attempt {one['attempt']} has no usage record at the edge")


def _keys_ran_once(seen: Seen, found: Findings, tries: Sequence[Told]) -> None:
    """However often it was asked, a request with a key is completed once."""
    tags = {one["request"]: one["client_request"] for one in seen.decisions}
    complete = Counter(tags.get(one["request"]) for one in seen.usages if one["outcome"] == "complete")
    for tag in {told.plan.tag for told in tries if told.plan.mode is Mode.KEYED}:
        if complete[tag] > 1:
            found.add("misbilled", f"{tag} has a key, and was completed {complete[tag]} times")
