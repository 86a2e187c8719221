"""Schedules that nobody wrote: a seed draws faults, targets and times. The same seed is the same schedule. Pure.

Two to six faults, most of them while another is under way or being got over: what is killed is frozen as it comes back,
a link fails while its site restarts. A schedule is a list of moves, so that it can be read, and what a seed found can
be found again. Each undoes all that it did.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from tests.chaos.client import Mode
from tests.chaos.declared import EDGES, HOME_ENGINE, PERSONAL, SITES
from tests.chaos.load import Lane
from tests.chaos.proxy import HEALTHY, Toxics

SITE_PROGRAMS = {site: (f"scheduler-{site}", f"engine-{site}-0", f"engine-{site}-1") for site in SITES}
SCHEDULERS = tuple(names[0] for names in SITE_PROGRAMS.values())
ENGINES = (HOME_ENGINE, *(name for names in SITE_PROGRAMS.values() for name in names[1:]))
PROGRAMS = ("control", "etcd", *EDGES, *SCHEDULERS, *ENGINES)
FAULTS_MIN, FAULTS_MAX = 2, 6
LAST_BEGIN_S = 8.0
LONGEST_S = 10.0
LANES = (
    Lane(6, Mode.STREAM),
    Lane(2, Mode.WHOLE, tokens=20),
    Lane(2, Mode.KEYED, tokens=20, tenant="third"),
    Lane(3, Mode.STREAM, kind=PERSONAL, tenant="third"),
    Lane(3, Mode.STREAM, tokens=100, cancel_after=(0, 1, 3, 8), tenant="noisy"),
)
"""What most scenarios ask, and tenants who hang up."""
FILLING = (
    Lane(2, Mode.STREAM, tokens=8, quick=True),
    Lane(2, Mode.STREAM, tokens=8, quick=True, kind=PERSONAL, tenant="third"),
)
"""Beside them where a disk is to be filled."""


class Verb(Enum):
    """What one move does to its target."""

    KILL = "SIGKILL"
    BEGIN = "start"
    KILL_ONE = "SIGKILL process"
    FREEZE_ONE = "SIGSTOP process"
    THAW_ONE = "SIGCONT process"
    FREEZE = "SIGSTOP"
    THAW = "SIGCONT"
    REPLACE = "SIGTERM, and a new one, for"
    LINK = "link to"
    RESET = "RST to every connection of"
    CLOSE = "close every connection of"
    PUBLISH = "publish, times"
    DRAIN = "publish that new work leaves"
    UNDRAIN = "publish that it comes back"
    SMALL_DISK = "a small disk for the spool of"
    LARGE_DISK = "its own disk for the spool of"
    STARVE = "processes that only work, for each core"
    FEED = "end the processes that only work"


@dataclass(frozen=True, slots=True, order=True)
class Move:
    """One act, so many seconds after the round began."""

    at_s: float
    verb: Verb = field(compare=False)
    target: str = field(default="", compare=False)
    """A program, one process of one (`edge-a/1`), or a site; a number where the verb counts."""
    toxics: Toxics = field(default=HEALTHY, compare=False)
    fault: bool = field(default=False, compare=False)
    """Whether something breaks here."""

    def text(self) -> str:
        """Return it as a line."""
        link = f": {toxics_text(self.toxics)}" if self.verb is Verb.LINK else ""
        return f"{self.at_s:5.1f} s  {self.verb.value} {self.target}".rstrip() + link


@dataclass(frozen=True, slots=True)
class Schedule:
    """One round."""

    seed: int
    moves: tuple[Move, ...]
    """In the order in which they are made."""
    lanes: tuple[Lane, ...]

    def text(self) -> str:
        """Return it as lines."""
        return "\n".join([f"seed {self.seed}", *(f"  {move.text()}" for move in self.moves)])


def toxics_text(toxics: Toxics) -> str:
    """Return what is wrong with a link, in words."""
    told = [word for word, holds in (("nothing up", toxics.hold_up), ("nothing down", toxics.hold_down)) if holds]
    told += ["refuses"] if toxics.refuse else []
    told += [f"{toxics.latency_ms:g} ms"] if toxics.latency_ms else []
    told += [f"up to {toxics.jitter_ms:g} ms of jitter"] if toxics.jitter_ms else []
    told += [f"{toxics.kb_per_s:g} kB/s"] if toxics.kb_per_s else []
    return ", ".join(told) or "whole"


def drawn(seed: int, processes: int = 1) -> Schedule:
    """Return the schedule of a seed, for a stand whose edges and schedulers are so many processes each."""
    draw = _Draw(random.Random(f"tidegate chaos {seed}"), processes)
    at_s = 0.0
    for _ in range(draw.chance.randint(FAULTS_MIN, FAULTS_MAX)):
        draw.fault(round(at_s, 1))
        # Together, soon after, or in the recovery.
        at_s = min(LAST_BEGIN_S, at_s + draw.chance.choice((0.0, 0.1, draw.within(0.1, 1.0), draw.within(0.5, 4.0))))
    lanes = (*LANES, *FILLING) if draw.small_disk else LANES
    return Schedule(seed, tuple(sorted(draw.moves)), lanes)


class _Draw:
    """The moves of one schedule while they are drawn."""

    def __init__(self, chance: random.Random, processes: int) -> None:
        self.chance = chance
        self._processes = processes
        self.moves: list[Move] = []
        self.small_disk = ""
        """The edge that has one: a signal would reach what wraps it, so it gets no other fault of a process."""
        self._touched: set[str] = set()
        self._link_free_s = dict.fromkeys(SITES, 0.0)
        self._starved = False

    def fault(self, at_s: float) -> None:
        """Add one fault that begins then."""
        kinds: tuple[tuple[Callable[[float], None], int], ...] = (
            (self._killed, 5),
            (self._killed_often, 2),
            (self._frozen, 4),
            (self._replaced, 3),
            (self._several, 2),
            (self._link, 6),
            (self._broken_off, 3),
            (self._published, 1),
            (self._drained, 1),
            (self._disk_full, 1),
            (self._starve, 1),
            *(((self._one_process, 6),) if self._processes > 1 else ()),
        )
        makers, weights = zip(*kinds, strict=True)
        self.chance.choices(makers, weights)[0](at_s)

    def within(self, low: float, high: float) -> float:
        """Return a number between two, with one decimal."""
        return round(self.chance.uniform(low, high), 1)

    def _length(self) -> float:
        """Return how long a fault lasts: a blink, about the limits of the programs, or long."""
        return self.chance.choice((self.within(0.1, 0.7), self.within(0.7, 3.2), self.within(3.2, LONGEST_S)))

    def _program(self) -> str:
        # One that was hit already, often: what breaks twice breaks in its recovery.
        names = [name for name in PROGRAMS if name != self.small_disk]
        again = [name for name in names if name in self._touched]
        name = self.chance.choice(again if again and self.chance.random() < 0.3 else names)
        self._touched.add(name)
        return name

    def _add(self, at_s: float, verb: Verb, target: str = "", toxics: Toxics = HEALTHY, *, fault: bool = False) -> None:
        self.moves.append(Move(round(at_s, 1), verb, target, toxics, fault))

    def _killed(self, at_s: float) -> None:
        name = self._program()
        self._add(at_s, Verb.KILL, name, fault=True)
        self._add(at_s + self._length(), Verb.BEGIN, name)

    def _killed_often(self, at_s: float) -> None:
        name, pause_s = self._program(), self.within(0.2, 1.5)
        for number in range(self.chance.randint(3, 5)):
            self._add(at_s + number * pause_s, Verb.KILL, name, fault=True)
            self._add(at_s + number * pause_s + 0.1, Verb.BEGIN, name)

    def _frozen(self, at_s: float) -> None:
        name = self._program()
        self._add(at_s, Verb.FREEZE, name, fault=True)
        self._add(at_s + self._length(), Verb.THAW, name)

    def _replaced(self, at_s: float) -> None:
        self._add(at_s, Verb.REPLACE, self._program(), fault=True)

    def _one_process(self, at_s: float) -> None:
        """One process of a program is killed, perhaps again and again, or stands still. Who watches it starts it."""
        name = self.chance.choice([name for name in (*EDGES, *SCHEDULERS) if name != self.small_disk])
        self._touched.add(name)
        target = f"{name}/{self.chance.randrange(self._processes)}"
        if self.chance.random() < 0.5:
            self._add(at_s, Verb.FREEZE_ONE, target, fault=True)
            self._add(at_s + self._length(), Verb.THAW_ONE, target)
            return
        pause_s = self.within(0.3, 2.0)
        for number in range(self.chance.randint(1, 4)):
            self._add(at_s + number * pause_s, Verb.KILL_ONE, target, fault=True)

    def _several(self, at_s: float) -> None:
        """Kill or freeze at once what has something in common: a site, all that decides, all of a kind, or nothing."""
        groups = (*SITE_PROGRAMS.values(), ("control", "etcd"), EDGES, SCHEDULERS, ENGINES, PROGRAMS)
        drawn_names = tuple(self.chance.sample(PROGRAMS, self.chance.randint(2, 4)))
        names = [name for name in self.chance.choice((*groups, drawn_names)) if name != self.small_disk]
        first, last = self.chance.choice(((Verb.KILL, Verb.BEGIN), (Verb.FREEZE, Verb.THAW)))
        away_s = self._length()
        for name in names:
            self._touched.add(name)
            self._add(at_s, first, name, fault=True)
            # Together, or one after the other in any order.
            self._add(at_s + away_s + self.chance.choice((0.0, self.within(0.0, 1.5))), last, name)

    def _link(self, at_s: float) -> None:
        chance = self.chance
        toxics = chance.choice(
            (
                Toxics(hold_up=True, hold_down=True),
                Toxics(hold_up=True),
                Toxics(hold_down=True),
                Toxics(float(chance.randint(20, 300))),
                Toxics(float(chance.randint(20, 100)), float(chance.randint(20, 200))),
                Toxics(kb_per_s=float(chance.randint(10, 100))),
                Toxics(float(chance.randint(20, 100)), float(chance.randint(20, 60)), float(chance.randint(30, 200))),
                Toxics(refuse=True),
            )
        )
        for_s = self._length()
        for site in SITES if chance.random() < 0.25 else (chance.choice(SITES),):
            # A link has one thing wrong at a time.
            begin_s = max(at_s, self._link_free_s[site])
            self._link_free_s[site] = begin_s + for_s
            self._add(begin_s, Verb.LINK, site, toxics, fault=True)
            if toxics.refuse:
                self._add(begin_s, Verb.RESET, site, fault=True)
            self._add(begin_s + for_s, Verb.LINK, site)

    def _broken_off(self, at_s: float) -> None:
        site, verb = self.chance.choice(SITES), self.chance.choice((Verb.RESET, Verb.CLOSE))
        pause_s = self.within(0.1, 0.8)
        for number in range(self.chance.randint(1, 6)):
            self._add(at_s + number * pause_s, verb, site, fault=True)

    def _published(self, at_s: float) -> None:
        self._add(at_s, Verb.PUBLISH, str(self.chance.randint(1, 20)))

    def _drained(self, at_s: float) -> None:
        site = self.chance.choice(SITES)
        self._add(at_s, Verb.DRAIN, site)
        self._add(at_s + self._length(), Verb.UNDRAIN, site)

    def _disk_full(self, at_s: float) -> None:
        free = [edge for edge in EDGES if edge not in self._touched]
        if self.small_disk or not free:
            return self._link(at_s)
        self.small_disk = self.chance.choice(free)
        self._add(at_s, Verb.SMALL_DISK, self.small_disk, fault=True)
        self._add(at_s + self.within(5.0, LONGEST_S), Verb.LARGE_DISK, self.small_disk)
        return None

    def _starve(self, at_s: float) -> None:
        if self._starved:
            return self._killed(at_s)
        self._starved = True
        self._add(at_s, Verb.STARVE, str(self.chance.randint(1, 3)))
        self._add(at_s + self.within(2.0, LONGEST_S), Verb.FEED)
        return None
