"""Leased shares: the processes together never use more than the whole, and whoever is busy alone gets nearly all."""

from __future__ import annotations

import random
from typing import TypeVar

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.watch.holder import KEPT_US, Holder
from orchestrator.watch.leases import BEAT_US, LIMITS_MAX, TERM_US, Leased, Said, Told, Use, fill, targets
from orchestrator.watch.lessor import Lessor

NAMES = ("requests", "tenant/acme", "tenant/other")
Message = TypeVar("Message", Said, Told)

counts = st.integers(0, 5_000)


@given(counts, st.lists(counts, max_size=12))
def test_what_is_shared_out_is_all_there_is_or_all_that_is_wanted(room: int, wants: list[int]) -> None:
    parts = fill(room, wants)
    assert sum(parts) == min(room, sum(wants))
    assert all(0 <= part <= want for part, want in zip(parts, wants, strict=True))
    # Whoever has less than it wants has as much as anybody, but for what does not divide.
    short = [part for part, want in zip(parts, wants, strict=True) if part < want]
    assert not short or min(short) >= max(parts) - 1


@given(st.data(), st.integers(1, 8), st.integers(0, 500))
def test_nobody_is_aimed_at_less_than_its_floor_and_together_at_no_more_than_the_whole(
    data: st.DataObject, processes: int, more: int
) -> None:
    leased = Leased({"requests": processes + more}, processes)
    needs = data.draw(st.lists(st.none() | counts, min_size=processes, max_size=processes))
    aims = targets(leased, "requests", needs)
    assert sum(aims) <= leased.whole("requests")
    assert all(aim >= leased.floor("requests", index) for index, aim in enumerate(aims))
    # Who needs an even share or less never has less than it needs, whatever the others want.
    for index, (aim, need) in enumerate(zip(aims, needs, strict=True)):
        assert need is None or aim >= min(need, leased.even("requests", index))
    if all(need == 0 for need in needs):
        assert aims == [leased.even("requests", index) for index in range(processes)]


class Process:
    """One process as it is: what it holds, and what runs in it."""

    def __init__(self, holder: Holder) -> None:
        self.holder = holder
        self.used = dict.fromkeys(NAMES, 0)

    def may_be_using(self, name: str) -> int:
        return max(self.used[name], self.holder.amount(name))

    def admit(self, name: str) -> bool:
        """As an edge does: at once, with what there is. Returns whether the watch is to be told at once."""
        if self.used[name] >= self.holder.amount(name):
            return self.holder.refused(name)
        self.used[name] += 1
        return self.holder.taken(name)

    def end(self, name: str, count: int) -> None:
        for _ in range(min(count, self.used[name])):
            self.used[name] -= 1
            self.holder.freed(name)


class Machine:
    """A watch and its processes, and messages between them that may be in any state of the way."""

    def __init__(self, processes: int, wholes: dict[str, int]) -> None:
        self.leased = Leased(wholes, processes)
        self.lessor = Lessor(self.leased)
        self.now_us = 0
        self.processes: list[Process | None] = [None] * processes
        self.up: list[list[Said]] = [[] for _ in range(processes)]
        self.down: list[list[Told]] = [[] for _ in range(processes)]

    def start(self, index: int) -> None:
        if self.processes[index] is None:
            self.processes[index] = Process(Holder(self.leased, index))
            self.lessor.came(index)

    def kill(self, index: int) -> None:
        """What was under way to and from it goes with its line."""
        if self.processes[index] is not None:
            self.processes[index] = None
            self.up[index].clear()
            self.down[index].clear()
            self.lessor.gone(index)

    def say(self, index: int) -> None:
        process = self.processes[index]
        if process is not None:
            self.up[index].append(process.holder.saying(self.now_us))

    def tell(self, index: int) -> None:
        if self.processes[index] is not None:
            self.down[index].append(self.lessor.telling(index))

    def plan(self) -> None:
        for index in self.lessor.plan():
            self.tell(index)

    def turn(self) -> None:
        """Whatever is under way arrives, and is answered, until nothing is: a network that works."""
        for _ in range(100):
            for index, process in enumerate(self.processes):
                for said in self.up[index]:
                    self.lessor.said(index, said)
                self.up[index].clear()
                if process is None:
                    continue
                changed = [process.holder.told(told, self.now_us) for told in self.down[index]]
                self.down[index].clear()
                if any(changed):
                    self.say(index)
            self.plan()
            self.check()
            if not any(self.up) and not any(self.down):
                return
        raise AssertionError("watch and processes do not come to rest")

    def beat(self) -> None:
        self.now_us += BEAT_US
        for index, process in enumerate(self.processes):
            if process is not None:
                process.holder.lapse(self.now_us)
            self.say(index)
            self.tell(index)
        self.turn()

    def check(self) -> None:
        for name in NAMES:
            there = [process for process in self.processes if process is not None]
            assert sum(process.may_be_using(name) for process in there) <= self.leased.whole(name)
            for index, process in enumerate(self.processes):
                assert process is None or process.holder.amount(name) >= self.leased.floor(name, index)

    def busy_alone(self, index: int, name: str) -> None:
        """One process is sent more than all may have, and nothing runs in the others, for as long as it may matter."""
        for at in range(len(self.processes)):
            self.start(at)
        for at, process in enumerate(self.processes):
            if process is not None and at != index:
                process.end(name, process.used[name])
        for _ in range(KEPT_US // BEAT_US + 2):
            self.beat()
            busy = self.processes[index]
            assert busy is not None
            for _ in range(self.leased.whole(name)):
                if busy.admit(name):
                    self.say(index)
                    self.turn()
        others = sum(self.leased.floor(name, at) for at in range(len(self.processes)) if at != index)
        assert busy.used[name] == self.leased.whole(name) - others


class Weather:
    """What happens, by chance: loads, messages late, lost, twice and in the wrong order, deaths and starts."""

    def __init__(self, machine: Machine, chance: random.Random) -> None:
        self.machine = machine
        self._chance = chance
        self._index = 0
        self._name = NAMES[0]

    def step(self) -> None:
        """One thing happens, mostly to the same process and limit as before, so that there it comes to extremes."""
        chance, machine = self._chance, self.machine
        if chance.random() < 0.2:
            self._index = chance.randrange(len(machine.processes))
        if chance.random() < 0.1:
            self._name = chance.choice(NAMES)
        happens = (self.load, self.up, self.down, self.speaks, self.time, self.fate)
        chance.choices(happens, (30, 30, 30, 8, 4, 1))[0]()

    def load(self) -> None:
        process = self.machine.processes[self._index]
        if process is None:
            return
        count = self._chance.randrange(1, 2 * self.machine.leased.whole(self._name))
        if self._chance.random() < 0.4:
            process.end(self._name, count)
        else:
            due = [process.admit(self._name) for _ in range(count)]
            if any(due):
                self.machine.say(self._index)

    def up(self) -> None:
        line = self.machine.up[self._index]
        if line and (message := self._drawn(line)) is not None:
            self.machine.lessor.said(self._index, message)
            if self._chance.random() < 0.8:
                self.machine.plan()

    def down(self) -> None:
        line, process = self.machine.down[self._index], self.machine.processes[self._index]
        if line and process is not None and (message := self._drawn(line)) is not None:
            changed = process.holder.told(message, self.machine.now_us)
            if changed and self._chance.random() < 0.8:
                self.machine.say(self._index)

    def speaks(self) -> None:
        self._chance.choice((self.machine.say, self.machine.tell))(self._index)

    def time(self) -> None:
        self.machine.now_us += self._chance.choice((BEAT_US, KEPT_US + 1, TERM_US + 1))
        process = self.machine.processes[self._index]
        if process is not None:
            process.holder.lapse(self.machine.now_us)

    def fate(self) -> None:
        self._chance.choice((self.machine.kill, self.machine.start, self.machine.start))(self._index)

    def _drawn(self, line: list[Message]) -> Message | None:
        """One message of a line, mostly the first; some are lost, some come again later."""
        at = self._chance.randrange(len(line)) if self._chance.random() < 0.3 else 0
        luck = self._chance.random()
        message = line[at] if luck < 0.1 else line.pop(at)
        return None if luck > 0.9 else message


@given(st.integers(0, 1 << 32), st.integers(2, 4), st.integers(4, 90), st.integers(4, 40))
@settings(max_examples=80, deadline=None)
def test_never_more_than_the_whole_whatever_happens_and_nearly_all_for_who_is_busy_alone(
    seed: int, processes: int, requests: int, tenant: int
) -> None:
    machine = Machine(processes, {"requests": requests, "tenant": tenant})
    for index in range(processes):
        machine.start(index)
    weather = Weather(machine, random.Random(seed))
    for _ in range(400):
        weather.step()
        machine.check()
    for name in NAMES:
        machine.busy_alone(seed % processes, name)


def test_what_a_dead_process_had_is_free_at_once_but_for_the_floor_of_the_next_one() -> None:
    machine = Machine(2, {"requests": 64, "tenant": 16})
    machine.busy_alone(0, "tenant/acme")
    busy, idle = machine.processes
    assert busy is not None
    assert idle is not None
    assert (busy.used["tenant/acme"], idle.holder.amount("tenant/acme")) == (15, 1)
    machine.kill(0)
    machine.plan()
    machine.turn()
    for _ in range(16):
        if idle.admit("tenant/acme"):
            machine.say(1)
            machine.turn()
    assert idle.used["tenant/acme"] == 15
    machine.start(0)
    machine.beat()
    again = machine.processes[0]
    assert again is not None
    assert again.holder.amount("tenant/acme") == 1
    # Of what nobody is short of, it has its even share again as soon as it is told so.
    assert again.holder.amount("requests") == 32


def test_a_process_that_hears_nothing_keeps_no_more_than_its_even_share() -> None:
    machine = Machine(2, {"requests": 64, "tenant": 16})
    machine.busy_alone(0, "requests")
    busy = machine.processes[0]
    assert busy is not None
    busy.end("requests", 60)
    assert busy.holder.amount("requests") > 32
    assert not busy.holder.lapse(machine.now_us + TERM_US)
    assert busy.holder.lapse(machine.now_us + TERM_US + 1)
    assert busy.holder.amount("requests") == 32
    # The watch knows of no lapse, and counts what it leased until it is told otherwise.
    machine.beat()
    assert busy.holder.amount("requests") > 32


def test_what_nobody_is_short_of_is_spoken_of_by_nobody() -> None:
    machine = Machine(3, {"requests": 64, "tenant": 16})
    machine.busy_alone(0, "tenant/acme")
    busy = machine.processes[0]
    assert busy is not None
    assert set(machine.lessor.telling(1).amounts) == {"tenant/acme"}
    busy.end("tenant/acme", 16)
    for _ in range(KEPT_US // BEAT_US + 2):
        machine.beat()
    assert machine.lessor.telling(1).amounts == {}
    assert [one.holder.amount("tenant/acme") for one in machine.processes if one is not None] == [6, 5, 5]


def test_only_so_many_limits_are_shared_unevenly_at_once() -> None:
    machine = Machine(2, {"requests": 64, "tenant": 2})
    for index in (0, 1):
        machine.start(index)
    busy = machine.processes[0]
    assert busy is not None
    for number in range(2 * LIMITS_MAX):
        busy.used[f"tenant/t{number}"] = 0
        busy.admit(f"tenant/t{number}")
    machine.say(0)
    machine.turn()
    assert len(machine.lessor.telling(1).amounts) == LIMITS_MAX


def test_a_limit_that_there_is_not_and_what_was_never_told_are_left_out() -> None:
    leased = Leased({"requests": 8}, 2)
    lessor = Lessor(leased)
    assert not lessor.said(0, Said(1, 0, {}))
    lessor.came(0)
    assert not lessor.said(0, Said(1, 7, {"requests": Use(0, 8)}))
    assert lessor.said(0, Said(1, 0, {"other": Use(1, 8)}))
    assert lessor.telling(0).amounts == {}
