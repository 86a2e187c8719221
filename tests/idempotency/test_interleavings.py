"""Duplicates, hang-ups and crashes in any order: at most one send is begun for a key, and at most one is charged.

The desk and the store are the real ones; the order of everything that waits is drawn from a seed. A crash forgets all
that is in memory, at any step: before a write, or after it and before anybody is told. Writes are not synced here,
because no power fails: what a SIGKILL leaves is tested in test_store.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from node_agent.idempotency import store as store_module
from node_agent.idempotency.desk import Claim, Desk, Handed, Kept, Taken
from node_agent.idempotency.rules import KEEP_MS, Answer, BodyDigest, Held, KeyDigest, State, TenantDigest, Why, judge
from node_agent.idempotency.sealing import Sealer
from node_agent.idempotency.store import Bounds, KeyStore, StoreError
from orchestrator.policy.ids import EdgeId, RequestId, TenantId
from orchestrator.telemetry.metrics import Metrics
from orchestrator.wire.catalogue import ProblemError

T = TypeVar("T")
INTERLEAVINGS = 10_000
NOW_MS = 1_790_000_000_000
BOUNDS = Bounds(1_000_000, 1_000_000, 1 << 30, 1 << 30)
SEALER = Sealer(b"secret", EdgeId("edge"))
METRICS = Metrics()


@dataclass
class Life:
    """One run of the program: its memory ends with it, the store does not."""

    store: KeyStore
    chance: Random
    crash_at: int | None
    """The step of the store at which it crashes."""
    after: bool
    """Whether that step is written before."""
    fails_at: int | None
    """The step that the disk refuses."""
    steps: int = 0
    dead: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def wait(self) -> None:
        """Let others go first, some of them. Whoever is dead goes no further."""
        for _ in range(self.chance.randrange(3)):
            await asyncio.sleep(0)
        if self.dead:
            raise asyncio.CancelledError

    async def do(self, action: Callable[[KeyStore], T]) -> T:
        async with self.lock:
            await self.wait()
            self.steps += 1
            if self.steps == self.fails_at:
                raise StoreError("the disk is full")
            crash = self.steps == self.crash_at
            if crash and not self.after:
                self.dead = True
                raise asyncio.CancelledError
            with self.store.transaction():
                done = action(self.store)
            self.dead = crash
            await self.wait()
            return done

    async def close(self) -> None:
        """Nothing to close: the next life goes on with the same file."""


@dataclass
class World:
    """What happened outside of the program, of which no crash makes anything undone."""

    begun: list[RequestId] = field(default_factory=list)
    charged: list[RequestId] = field(default_factory=list)
    replayed: list[bytes] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    made: int = 0


async def one_request(world: World, life: Life, desk: Desk, name: str, body: bytes) -> None:
    """One request as the front and the gate serve it. Pools refuse, break off or answer as chance has it."""
    await life.wait()
    world.made += 1
    request = RequestId(f"req_{world.made:032x}")
    sealed = SEALER.of(TenantId("acme"), "/v1/chat/completions", name, "", body)
    keeps = life.chance.random() < 0.7
    try:
        found = await desk.hand_in(Handed(request, sealed, keeps))
    except Taken as taken:
        world.answers.append(taken.problem.code)
        return
    except ProblemError as refused:
        world.answers.append(refused.problem.code)
        return
    if isinstance(found, Kept):
        world.replayed.append(found.result.body)
        return
    world.answers.append("new")
    try:
        with suppress(ProblemError):
            await sends(world, life, found, request)
    finally:
        await found.end()


async def sends(world: World, life: Life, claim: Claim, request: RequestId) -> None:
    async def settle() -> None:
        await life.wait()
        world.charged.append(request)

    for _ in range(3):
        await life.wait()
        await claim.before_send(may_keep=life.chance.random() < 0.9)
        outcome = life.chance.choice(("refused", "broken", "whole", "whole"))
        if outcome == "refused":
            claim.not_started()
            continue
        world.begun.append(request)
        await life.wait()
        if outcome == "broken":
            await settle()
            return
        claim.settle = settle
        claim.start(200, (("content-type", "text/plain"),))
        claim.add(request.encode())
        await claim.complete()
        return


async def interleaving(store: KeyStore, seed: int) -> World:
    """Two lives with duplicates and hang-ups, the first of which may crash, and one request after all."""
    chance = Random(seed)
    world = World()
    name = f"key {seed}"
    calm = True
    for last in (False, True):
        crash_at = None if last else chance.choice((None, 1, 2, 3, 4, 5, 6))
        fails_at = chance.choice((None, None, None, 1, 2, 3, 4))
        calm = calm and crash_at is None and fails_at is None
        life = Life(store, chance, crash_at, chance.random() < 0.5, fails_at)
        desk = Desk(life, SEALER, lambda: NOW_MS, METRICS)
        bodies = [b"body", b"body", b"other" if chance.random() < 0.2 else b"body"]
        tasks = [asyncio.create_task(one_request(world, life, desk, name, body)) for body in bodies]
        for task in tasks:
            if chance.random() < 0.2:
                for _ in range(chance.randrange(12)):
                    await asyncio.sleep(0)
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    begun, told = len(world.begun), len(world.answers)
    life.fails_at = None
    await one_request(world, life, desk, name, b"body")
    if begun:
        assert len(world.begun) == begun, f"seed {seed}: a key that was begun is spent"
    elif calm:
        assert world.answers[told:] == ["new"], f"seed {seed}: a key under which nothing was begun is free"
    assert "idempotency_in_progress" not in world.answers[told:], f"seed {seed}: nothing runs any more"
    return world


async def test_ten_thousand_interleavings_begin_and_charge_a_key_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unsynced = tuple(pragma.replace("FULL", "OFF") for pragma in store_module._PRAGMAS)
    monkeypatch.setattr(store_module, "_PRAGMAS", unsynced)
    store = KeyStore(tmp_path / "keys.db", BOUNDS)
    begun = replayed = free = 0
    codes: set[str] = set()
    for seed in range(INTERLEAVINGS):
        world = await interleaving(store, seed)
        assert len(world.begun) <= 1, f"seed {seed}: begun {len(world.begun)} times"
        assert len(world.charged) <= 1, f"seed {seed}: charged {len(world.charged)} times"
        assert set(world.charged) <= set(world.begun), f"seed {seed}"
        for body in world.replayed:
            # What is sent again is what the one request brought, and that was charged.
            assert [body] == [request.encode() for request in world.charged], f"seed {seed}"
        begun += len(world.begun)
        replayed += bool(world.replayed)
        free += world.answers.count("new") > 1
        codes.update(world.answers)
    store.close()
    # The positive controls: every kind of thing happened, often.
    assert begun > INTERLEAVINGS // 2
    assert replayed > INTERLEAVINGS // 10
    assert free > INTERLEAVINGS // 10
    assert codes == {
        "new",
        "idempotency_in_progress",
        "idempotency_result_not_kept",
        "idempotency_body_differs",
        "idempotency_unavailable",
    }


KEYS = st.integers(0, 1)
CUT = st.sampled_from([False, False, False, True])
TENANT = TenantDigest(b"t" * 32)


def key(number: int) -> KeyDigest:
    return KeyDigest(number.to_bytes(32, "big"))


class KeysOnDisk(RuleBasedStateMachine):
    """The store, held to a dictionary, over restarts and writes that are cut."""

    folder: Path

    def __init__(self) -> None:
        super().__init__()
        self.now_ms = NOW_MS
        self.made = 0
        self.model: dict[int, tuple[Held, bytes | None]] = {}
        self.path = self.folder / f"{id(self)}-{Random().randrange(1 << 60)}.db"
        self.store = KeyStore(self.path, BOUNDS)

    @rule(number=KEYS, cut=CUT)
    def begins(self, number: int, cut: bool) -> None:
        self.made += 1
        held = Held(RequestId(f"req_{self.made}"), BodyDigest(b"b"), State.RUNNING, self.now_ms + KEEP_MS)
        free = judge(self.held(number), held.body, self.now_ms, here=False) is Answer.GO
        try:
            with self.store.transaction():
                self.store.begin(key(number), TENANT, held.body, held.request, self.now_ms, held.until_ms)
                if cut:
                    raise KeyboardInterrupt
        except StoreError:
            assert not free
        except KeyboardInterrupt:
            assert free
        else:
            assert free
            self.model[number] = (held, None)

    @rule(number=KEYS, how=st.sampled_from(["end", "keep", "free"]), cut=CUT)
    def is_over(self, number: int, how: str, cut: bool) -> None:
        known = self.model.get(number)
        request = RequestId("req_none") if known is None else known[0].request
        runs = known is not None and known[0].state is State.RUNNING
        with suppress(KeyboardInterrupt), self.store.transaction():
            if how == "end":
                self.store.end(key(number), request, 1, Why.TOO_LARGE)
            elif how == "keep":
                assert self.store.keep(key(number), TENANT, request, 1, request.encode()) is runs
            else:
                self.store.free(key(number), request)
            if cut:
                raise KeyboardInterrupt
        if cut or known is None or not runs:
            return
        if how == "free":
            del self.model[number]
        else:
            state, result = (State.ENDED, None) if how == "end" else (State.KEPT, request.encode())
            why = Why.TOO_LARGE if how == "end" else None
            self.model[number] = (Held(request, known[0].body, state, known[0].until_ms, why), result)

    @rule(hours=st.integers(1, 5))
    def time_goes_by(self, hours: int) -> None:
        self.now_ms += hours * 3_600_000

    @rule()
    def purges(self) -> None:
        with self.store.transaction():
            self.store.purge(self.now_ms)
            assert self.store.totals()[0] == sum(
                held.until_ms > self.now_ms for held, _ in self.model.values()
            ), "only what is past its time goes"
        self.model = {n: known for n, known in self.model.items() if known[0].until_ms > self.now_ms}

    @precondition(lambda self: self.model)
    @rule()
    def starts_anew(self) -> None:
        self.store.close()
        self.store = KeyStore(self.path, BOUNDS)

    def held(self, number: int) -> Held | None:
        known = self.model.get(number)
        return known[0] if known is not None and known[0].until_ms > self.now_ms else None

    @invariant()
    def agrees(self) -> None:
        with self.store.transaction():
            for number in range(2):
                assert self.store.find(key(number), TENANT, self.now_ms) == self.held(number)
                if self.held(number) is not None:
                    assert self.store.result(key(number)) == self.model[number][1]

    def teardown(self) -> None:
        self.store.close()


def test_the_store_is_a_dictionary_that_survives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unsynced = tuple(pragma.replace("FULL", "OFF") for pragma in store_module._PRAGMAS)
    monkeypatch.setattr(store_module, "_PRAGMAS", unsynced)
    monkeypatch.setattr(KeysOnDisk, "folder", tmp_path, raising=False)
    run_state_machine_as_test(
        KeysOnDisk, settings=settings(max_examples=100, stateful_step_count=25, deadline=None)
    )
