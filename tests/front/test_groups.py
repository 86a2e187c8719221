"""Requests begin in groups, in order, and none waits for another that may never come."""

from __future__ import annotations

import asyncio

from node_agent.front.groups import GROUP_MAX, Groups


class Begun:
    """What began, by the turn of the loop in which it did."""

    def __init__(self) -> None:
        self.turns: list[list[int]] = []
        self.groups = Groups()

    def add(self, *numbers: int) -> None:
        for number in numbers:
            self.groups.add(lambda number=number: self.turns[-1].append(number))

    async def watch(self, turns: int) -> list[list[int]]:
        """What began in each of the next turns."""
        for _ in range(turns):
            self.turns.append([])
            await asyncio.sleep(0)
        return self.turns


async def test_one_alone_begins_after_one_more_look_and_never_at_once() -> None:
    begun = Begun()
    begun.add(1)
    assert await begun.watch(4) == [[], [1], [], []]


async def test_what_comes_before_the_group_begins_joins_it() -> None:
    begun = Begun()
    begun.add(1)
    await begun.watch(1)
    begun.add(2, 3)
    assert await begun.watch(2) == [[], [1, 2, 3], []]


async def test_a_whole_group_waits_for_no_look() -> None:
    begun = Begun()
    begun.add(*range(GROUP_MAX))
    assert await begun.watch(2) == [[*range(GROUP_MAX)], []]


async def test_no_group_is_larger_and_all_begin_in_order() -> None:
    begun, count = Begun(), 3 * GROUP_MAX + 5
    begun.add(*range(count))
    turns = await begun.watch(8)
    assert [len(turn) for turn in turns if turn] == [GROUP_MAX] * 3 + [5]
    assert [number for turn in turns for number in turn] == [*range(count)]


async def test_what_is_added_by_one_that_begins_is_begun_later() -> None:
    begun = Begun()
    begun.groups.add(lambda: begun.add(2))
    assert await begun.watch(5) == [[], [], [], [2], []]


async def test_one_that_fails_keeps_no_other_from_beginning() -> None:
    begun, said = Begun(), []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: said.append(type(context["exception"])))

    def fail() -> None:
        raise RuntimeError

    begun.groups.add(fail)
    begun.add(1, 2, 3)
    assert await begun.watch(5) == [[], [], [], [1, 2, 3], []]
    assert said == [RuntimeError]
