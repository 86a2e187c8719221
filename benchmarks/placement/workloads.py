"""Requests of a run: generated workloads with shared prefixes, and how rows become the traffic of a world.

**Load.** `capacity` is the greatest rate of requests, in the given shares of kinds, that some assignment to permitted
pools can carry with every replica at its batch limit and nothing cached. `load` is a rate against it: at 1.0 the work
that arrives per second equals what the permitted pools can do. Whoever finds prefixes in caches has room beyond it.
It is the mean of a run: at the peak of the day, and in bursts of the trace, more arrives.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random

from benchmarks.placement.traces import DAY_MINUTES, DayProfile, TraceRow, mixed, warp
from orchestrator.placement.replay.world import BLOCK_TOKENS, Gpu, Link, Promise, SimPool, SimRequest, World
from orchestrator.policy.ids import TenantId

UPLOAD_BYTES_PER_TOKEN = 4
ANSWER_LIMITS = (64, 128, 256, 512, 1_024, 2_048, 4_096, 8_192)
"""What callers write as `max_tokens`."""
ANSWER_SLACK = 4.0
"""They allow up to so many times what they get: assumed."""
DAY_HOURS = 24.0
MINUTE_MS = 60_000


@dataclass(frozen=True, slots=True)
class Shape:
    """A typical request."""

    prompt_tokens: float
    output_tokens: float


CHAT = Shape(1_155, 211)
"""The mean of Azure's conversation trace of 2023."""


@dataclass(frozen=True, slots=True)
class Mix:
    """Who sends how much. Lists go by kind of the world, unless they say otherwise."""

    shares: tuple[float, ...]
    """Of all requests over a day; they add up to 1."""
    edges: tuple[int, ...]
    """The edge at which each kind arrives."""
    tenants: tuple[int, ...]
    """How many tenants each kind has. Tenants share no prefixes."""
    utc_minutes: tuple[int, ...]
    """By edge: local time against UTC."""
    profile: DayProfile
    """Of every edge, in its local time."""
    limited_share: float
    """Of the requests: whose callers limit the answer, so that `expected_tokens` is set."""

    def rates(self, minute_utc: float) -> list[float]:
        """Return the rate of each kind at a minute of the day, in UTC; over a day they add up to 1 in the mean."""
        local = [self.profile.at(minute_utc + shift) for shift in self.utc_minutes]
        return [share * local[edge] for share, edge in zip(self.shares, self.edges, strict=True)]


def shape_of(rows: Sequence[TraceRow]) -> Shape:
    """Return the mean of `rows`. Raises ZeroDivisionError without rows."""
    count = len(rows)
    return Shape(sum(row.prompt_tokens for row in rows) / count, sum(row.output_tokens for row in rows) / count)


def pool_rate(pool: SimPool, shape: Shape) -> float:
    """Return how many such requests a pool can do per second with its batches full and nothing cached.

    A step takes in a chunk and gives every stream a token (`Gpu`); a request needs its part of as many steps as its
    prompt has chunks, or its answer tokens in a full batch, whichever is more.
    """
    gpu = pool.gpu
    batch = max(1.0, min(float(gpu.slots), gpu.kv_tokens / (shape.prompt_tokens + shape.output_tokens)))
    steps = max(shape.output_tokens / batch, shape.prompt_tokens / gpu.chunk_tokens)
    busy_ns = shape.prompt_tokens * gpu.prefill_ns + shape.output_tokens * gpu.stream_ns + steps * gpu.step_ns
    return pool.replicas * 1e9 / busy_ns


def capacity(world: World, shape: Shape = CHAT, shares: Sequence[float] | None = None) -> float:
    """Return the greatest rate, in requests per second, that the pools can carry (see the module).

    With `shares` of kinds, only permitted pools count for each: of every set of pools, what may go nowhere else must
    fit there (Hall's theorem; the sets that matter are unions of what kinds may). Without, all pools together.
    """
    rates = [pool_rate(pool, shape) for pool in world.pools]
    if shares is None:
        return sum(rates)
    masks = [sum(1 << pool for pool in kind.may) for kind in world.kinds]
    best = sum(rates)
    for pools in pool_sets(masks):
        confined = sum(share for share, mask in zip(shares, masks, strict=True) if not mask & ~pools)
        if confined > 0:
            best = min(best, sum(rate for pool, rate in enumerate(rates) if pools >> pool & 1) / confined)
    return best


def pool_sets(masks: Sequence[int]) -> set[int]:
    """Return every union of some of these sets of pools, as bits."""
    unions = {0}
    for mask in dict.fromkeys(masks):
        unions |= {union | mask for union in unions}
    return unions - {0}


def longest(world: World) -> int:
    """Return the most tokens that prompt and answer may have together, so that every pool can take them."""
    return min(min(pool.context_tokens, pool.gpu.kv_tokens) for pool in world.pools)


def unloaded(gpu: Gpu, link: Link, prompt_tokens: int) -> Promise:
    """Return what an idle pool gives a request with such a prompt: time to the first token, and per token after it.

    Of jitter it takes the mean; nothing is cached.
    """
    upload_us = prompt_tokens * UPLOAD_BYTES_PER_TOKEN * 1_000_000 // link.bytes_per_s
    steps = -(-prompt_tokens // gpu.chunk_tokens)
    prefill_us = (prompt_tokens * gpu.prefill_ns + steps * gpu.step_ns) // 1000
    return Promise(link.rtt_us + link.jitter_us + upload_us + prefill_us, gpu.alone_decode_ns() // 1000)


def attainable(world: World, requests: Sequence[SimRequest]) -> float:
    """Return the share of requests whose promise some permitted pool would keep, were it idle and nothing cached.

    Long prompts break a promise on any pool that a kind may use; caches alone may keep it then.
    """
    kept = 0
    for request in requests:
        kind = world.kinds[request.kind]
        gained = (
            unloaded(world.pools[pool].gpu, world.links[request.edge][pool], request.prompt_tokens) for pool in kind.may
        )
        kept += any(
            one.first_us <= kind.promise.first_us and one.token_us <= kind.promise.token_us for one in gained
        )
    return kept / len(requests)


def requests_of(
    world: World,
    rows: Sequence[TraceRow],
    mix: Mix,
    load: float,
    seed: int,
    *,
    count: int | None = None,
    lanes: int = 1,
    hours: float = DAY_HOURS,
    keep_gaps: bool = False,
) -> list[SimRequest]:
    """Return the traffic of a run: `rows` given to edges, kinds and tenants, at `load` (see the module).

    Rows that some pool could not take (`longest`) are dropped, never cut; of the others the first `count` are taken.
    A session belongs to one tenant for good: kind and tenant are drawn when it begins, by what each edge sends at that
    time of its day. The run stands for `hours` of a day that begins at `world.start_ms`: the profile is compressed,
    wall time is not. Blocks are hashed with the tenant, so that prefixes are shared within a tenant only.

    How the rate is scaled: the whole trace runs faster or slower, turns of a conversation included; `lanes` windows of
    it side by side do so with less speed, and with fewer prefixes that repeat. With `keep_gaps`, for sessions that are
    shorter than the run, only their beginnings move and what is between their rows stays as it is; the run is then a
    window of endless traffic, with sessions cut at both ends, so that it has fewer rows than were given.
    Raises ValueError when nothing is left to send.
    """
    most = longest(world)
    fitting = [row for row in rows if row.prompt_tokens + row.output_tokens <= most][:count]
    if not fitting or load <= 0:
        raise ValueError("no rows that fit, or no load")
    whole_us = len(fitting) / (load * capacity(world, shape_of(fitting), mix.shares)) * 1e6
    lined = _side_by_side(fitting, lanes)
    before_us = max(_spans_us(lined)) if keep_gaps else 0
    duration_us = whole_us - before_us
    if duration_us <= 0:
        raise ValueError("at this load the longest session outlasts the run: more rows are needed")
    begun = world.start_ms / MINUTE_MS % DAY_MINUTES

    def minute(at_us: float) -> float:
        return begun + at_us / duration_us * hours * 60

    def busy(share: float) -> float:
        return sum(mix.rates(minute(share * whole_us - before_us)))

    if keep_gaps:
        first_us: dict[int, int] = {}
        for row in lined:
            first_us.setdefault(row.session, row.at_us)
        starts = dict(zip(first_us, warp(_evenly(list(first_us.values())), busy), strict=True))
        moments = [starts[row.session] * whole_us - before_us + row.at_us - first_us[row.session] for row in lined]
    else:
        moments = [share * whole_us for share in warp(_evenly([row.at_us for row in lined]), busy)]
    within = [index for index in range(len(lined)) if 0 <= moments[index] <= duration_us]
    within.sort(key=lambda index: moments[index])
    assign = _Assignment(world, mix, Random(seed))
    return [
        assign.request(number, lined[index], int(moments[index]), minute(moments[index]))
        for number, index in enumerate(within)
    ]


def _spans_us(rows: Sequence[TraceRow]) -> list[int]:
    """Return from the first row of each session to its last."""
    first_us: dict[int, int] = {}
    last_us: dict[int, int] = {}
    for row in rows:
        first_us.setdefault(row.session, row.at_us)
        last_us[row.session] = row.at_us
    return [last_us[session] - begun_us for session, begun_us in first_us.items()]


class _Assignment:
    """Gives sessions to tenants and makes requests of rows."""

    def __init__(self, world: World, mix: Mix, chance: Random) -> None:
        self._world = world
        self._mix = mix
        self._chance = chance
        self._models = sorted({pool.model for pool in world.pools})
        self._owners: dict[int, tuple[int, int]] = {}
        self._first = [sum(mix.tenants[:kind]) for kind in range(len(mix.tenants))]

    def request(self, number: int, row: TraceRow, at_us: int, minute_utc: float) -> SimRequest:
        """Return the request that a row becomes."""
        owner = self._owners.get(row.session)
        if owner is None:
            owner = self._owners[row.session] = self._drawn(minute_utc)
        kind, tenant = owner
        salt = self._first[kind] + tenant + 1
        limited = self._chance.random() < self._mix.limited_share
        slack = self._chance.uniform(1.0, ANSWER_SLACK)
        return SimRequest(
            number=number,
            at_us=at_us,
            edge=self._mix.edges[kind],
            tenant=TenantId(f"{self._world.kinds[kind].name}-{tenant}"),
            model=self._models[0],
            kind=kind,
            prompt_tokens=row.prompt_tokens,
            output_tokens=row.output_tokens,
            expected_tokens=_limit(row.output_tokens, slack) if limited else 0,
            blocks=tuple(mixed(block, salt) for block in row.blocks),
            session=mixed(row.session, salt),
            upload_bytes=row.prompt_tokens * UPLOAD_BYTES_PER_TOKEN,
        )

    def _drawn(self, minute_utc: float) -> tuple[int, int]:
        rates = list(accumulate(self._mix.rates(minute_utc)))
        kind = bisect_right(rates, self._chance.random() * rates[-1])
        kind = min(kind, len(rates) - 1)
        return kind, int(self._chance.random() * self._mix.tenants[kind])


def _limit(output_tokens: int, slack: float) -> int:
    """Return the limit that a caller sets: the next usual one above a few times the answer."""
    index = bisect_left(ANSWER_LIMITS, output_tokens * slack)
    return max(output_tokens, ANSWER_LIMITS[min(index, len(ANSWER_LIMITS) - 1)])


def _side_by_side(rows: Sequence[TraceRow], lanes: int) -> list[TraceRow]:
    """Return the rows cut into `lanes` windows that begin together, in order of arrival."""
    if lanes < 1:
        raise ValueError("at least one lane")
    if lanes == 1:
        return list(rows)
    length = -(-len(rows) // lanes)
    placed: list[tuple[int, int, TraceRow]] = []
    for lane in range(lanes):
        window = rows[lane * length : (lane + 1) * length]
        placed += [(row.at_us - window[0].at_us, lane, row) for row in window]
    placed.sort(key=lambda one: one[:2])
    # The rest of a conversation that the cut falls into is another session: its lane plays at the same time.
    return [
        TraceRow(at_us, row.prompt_tokens, row.output_tokens, row.blocks, mixed(row.session, lane))
        for at_us, lane, row in placed
    ]


def _evenly(at_us: Sequence[int]) -> list[float]:
    """Return where each moment lies between the first and the end, from 0 to 1; the last has a mean gap after it."""
    first, span = min(at_us), max(at_us) - min(at_us)
    whole = span * len(at_us) / max(1, len(at_us) - 1)
    return [(moment - first) / whole if whole else 0.0 for moment in at_us]


@dataclass(frozen=True, slots=True)
class TreeShape:
    """Trees of thought, as SkyWalker (EuroSys'26) runs them: every node of a tree is one request.

    It gives depth and branches, and hashes by question; the lengths are ours, so that an endless cache finds about as
    much as its best policy does (90 %). A child's prompt is its parent's, the parent's answer, and an instruction.
    """

    branch: int
    depth: int = 4
    system_tokens: int = 2_048
    """Of the instruction that all trees share."""
    question_tokens: tuple[int, int] = (384, 640)
    thought_tokens: tuple[int, int] = (96, 256)
    """Of an answer."""
    step_tokens: int = 32
    """Of the instruction that comes with each thought."""
    step_us: tuple[int, int] = (4_000_000, 8_000_000)
    """From a node to its children: the time that its answer takes. Trees do not wait for slower pools: open loop."""

    @property
    def nodes(self) -> int:
        """Requests of one tree: 15 with two branches and four levels, 85 with four."""
        return sum(self.branch**level for level in range(self.depth))


def tree_of_thought(shape: TreeShape, trees: int, span_us: int, seed: int) -> tuple[TraceRow, ...]:
    """Return `trees` trees that begin at random moments within `span_us`. A session is a tree."""
    chance = Random(seed)
    rows: list[TraceRow] = []
    for tree in range(trees):
        begin_us = int(chance.random() * span_us)
        system = _Text(((0, shape.system_tokens),))
        root = system.then(mixed(tree, seed), chance.randint(*shape.question_tokens))
        level = [(begin_us, root)]
        for depth in range(shape.depth):
            children: list[tuple[int, _Text]] = []
            for at_us, prompt in level:
                thought = chance.randint(*shape.thought_tokens)
                rows.append(TraceRow(at_us, prompt.tokens, thought, prompt.blocks(), tree))
                answered_us = at_us + chance.randint(*shape.step_us)
                if depth + 1 < shape.depth:
                    # The branches of a node think on from its one answer, each with another instruction.
                    answer = prompt.then(mixed(len(rows), seed + 1), thought)
                    children += [
                        (answered_us, answer.then(mixed(branch, len(rows)), shape.step_tokens))
                        for branch in range(shape.branch)
                    ]
            level = children
    return tuple(sorted(rows, key=lambda row: row.at_us))


@dataclass(frozen=True, slots=True)
class AgentShape:
    """Agents that use tools: a long prefix of instructions and tools, short answers, and a context that grows.

    Every number is assumed; the form is that of Mooncake's tool-and-agent trace (FAST'25): long inputs, short outputs.
    """

    prefixes: int = 4
    """Different sets of tools. A session uses one."""
    prefix_tokens: tuple[int, int] = (3_072, 8_192)
    task_tokens: tuple[int, int] = (100, 600)
    steps: tuple[int, int] = (3, 12)
    call_tokens: tuple[int, int] = (30, 160)
    """Of an answer, which calls a tool."""
    result_tokens: tuple[int, int] = (80, 1_200)
    step_us: tuple[int, int] = (2_000_000, 9_000_000)
    """From one call to the next: the answer and the tool. Open loop, as above."""


def tool_use(shape: AgentShape, sessions: int, span_us: int, seed: int) -> tuple[TraceRow, ...]:
    """Return `sessions` agents that begin at random moments within `span_us`."""
    chance = Random(seed)
    prefixes = [
        _Text(((number, chance.randint(*shape.prefix_tokens)),)) for number in range(shape.prefixes)
    ]
    rows: list[TraceRow] = []
    for session in range(sessions):
        at_us = int(chance.random() * span_us)
        prompt = chance.choice(prefixes).then(mixed(session, seed), chance.randint(*shape.task_tokens))
        for _ in range(chance.randint(*shape.steps)):
            call = chance.randint(*shape.call_tokens)
            rows.append(TraceRow(at_us, prompt.tokens, call, prompt.blocks(), session))
            prompt = prompt.then(mixed(len(rows), seed + 1), call + chance.randint(*shape.result_tokens))
            at_us += chance.randint(*shape.step_us)
    return tuple(sorted(rows, key=lambda row: row.at_us))


@dataclass(frozen=True, slots=True)
class _Text:
    """A prompt as pieces of text: (which text, how many tokens of it). No text is in it."""

    pieces: tuple[tuple[int, int], ...]

    @property
    def tokens(self) -> int:
        return sum(tokens for _, tokens in self.pieces)

    def then(self, text: int, tokens: int) -> _Text:
        return _Text((*self.pieces, (text, tokens)))

    def blocks(self) -> tuple[int, ...]:
        """Return the hash of each block, each covering all before it."""
        found: list[int] = []
        chain = 0
        for block in self._by_block():
            for text, until in block:
                chain = mixed(chain ^ mixed(text, until), 1)
            found.append(chain)
        return tuple(found)

    def _by_block(self) -> Iterator[list[tuple[int, int]]]:
        """Yield, block by block, which texts are in it and how far each has come at its end."""
        block: list[tuple[int, int]] = []
        free = BLOCK_TOKENS
        for text, tokens in self.pieces:
            done = 0
            while done < tokens:
                taken = min(free, tokens - done)
                done, free = done + taken, free - taken
                block.append((text, done))
                if not free:
                    yield block
                    block, free = [], BLOCK_TOKENS
        if block:
            yield block
