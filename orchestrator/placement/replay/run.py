"""The event loop of a replay: requests, a world and a router in, outcomes out.

One heap of (time, number, what to do, to what) holds the future; the number makes order total, so that one seed is one
run. Every message between edge and pool takes half a round trip and a draw of half the link's jitter, on the way in its
upload besides; answers are small and take no time of their own. Reports take exactly half a round trip.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from heapq import heappop, heappush
from typing import Any

from orchestrator.placement.replay.chance import Chance, exponential_us
from orchestrator.placement.replay.outcome import Bill, Outcome, Run
from orchestrator.placement.replay.replica import NEVER_US, Attempt, Replica
from orchestrator.placement.replay.router import Forward, Hold, Router, Send
from orchestrator.placement.replay.site import Site
from orchestrator.placement.replay.world import Permits, PoolReport, Reply, SimRequest, World

ATTEMPTS_MAX = 3
"""The first, and at most two more (DESIGN section 5)."""
HELD_MAX = 100_000
"""Requests that one edge keeps in line."""
HOLD_US = 10_000
"""The head of an edge's line is asked again at least this often."""
DRAIN_US = 3_600_000_000
"""Without a horizon, what has not ended this long after the last arrival never will."""
PROGRESS_EVERY = 1_000
"""Arrivals between two calls of `progress`."""


class _Case:
    """One request on its way, over all its attempts."""

    __slots__ = (
        "attempt",
        "attempts",
        "back_us",
        "cost_pico",
        "edge",
        "egress_bytes",
        "first_us",
        "hop_crosses",
        "hopped",
        "moved_bytes",
        "request",
        "tried",
        "violated",
    )

    def __init__(self, request: SimRequest) -> None:
        """Stand at its own edge."""
        self.request = request
        self.edge = request.edge
        self.tried: tuple[int, ...] = ()
        self.attempt: Attempt | None = None
        """The last."""
        self.attempts = 0
        self.hopped = False
        self.hop_crosses = False
        self.back_us = 0
        """From where it stands back to its own edge."""
        self.first_us: int | None = None
        self.cost_pico = 0
        self.egress_bytes = 0
        self.moved_bytes = 0
        self.violated = False


def run(
    world: World,
    requests: Iterable[SimRequest],
    permits: Permits,
    router: Router,
    chance: Chance,
    *,
    bill: Bill,
    warmup_us: int = 0,
    horizon_us: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Run:
    """Replay `requests`, which come by arrival, and return what became of each.

    What arrives before `warmup_us` runs but is not told of. At `horizon_us` everything stops: what is under way counts
    as not finished and is billed for what it generated; without one, work is drained after the last arrival. `progress`
    is told how many have arrived, now and then. Raises ValueError when requests are out of order or share a number, or
    when the router breaks its protocol.
    """
    return _Loop(world, requests, permits, router, chance, bill, warmup_us, horizon_us, progress).run()


class _Loop:
    """The state of one run."""

    def __init__(
        self,
        world: World,
        requests: Iterable[SimRequest],
        permits: Permits,
        router: Router,
        chance: Chance,
        bill: Bill,
        warmup_us: int,
        horizon_us: int | None,
        progress: Callable[[int], None] | None,
    ) -> None:
        self._requests: Iterator[SimRequest] = iter(requests)
        self._permits = permits
        self._router = router
        self._chance = chance
        self._bill = bill
        self._progress = progress
        self._warmup_us = warmup_us
        self._until_us = NEVER_US if horizon_us is None else horizon_us
        self._drains = horizon_us is None
        self._start_ms = world.start_ms
        self._token_bytes = world.output_bytes_per_token
        self._outages = world.outages
        self._sites = [Site(index, pool, world.block_tokens, router) for index, pool in enumerate(world.pools)]
        self._half_us = [[link.rtt_us // 2 for link in row] for row in world.links]
        self._jitter_us = [[link.jitter_us / 2 for link in row] for row in world.links]
        self._bytes_per_s = [[link.bytes_per_s for link in row] for row in world.links]
        soils = world.edge_jurisdictions
        self._crosses = [[soil != pool.jurisdiction for pool in world.pools] for soil in soils]
        self._hop_us = [[_hop_us(world, here, there) for there in range(len(soils))] for here in range(len(soils))]
        self._hop_crosses = [[here != there for there in soils] for here in soils]
        self._held: list[deque[_Case]] = [deque() for _ in world.edges]  # bounded: by HELD_MAX, on arrival
        self._timed = [False for _ in world.edges]
        self._heap: list[tuple[int, int, Callable[[int, Any], None], Any]] = []
        self._number = 0
        self._cases: dict[int, _Case] = {}
        """By request; an attempt finds its case here, for it never outlives it."""
        self._outcomes: list[Outcome] = []
        self._arrived = 0
        self._reports = 0
        self._more = True

    def run(self) -> Run:
        """Let everything happen."""
        heap, pop, cases = self._heap, heappop, self._cases
        for outage in self._outages:
            self._push(outage.from_us, self._go_down, self._sites[outage.pool])
            self._push(outage.until_us, self._come_up, self._sites[outage.pool])
        for site in self._sites:
            # Pools do not report in step: their clocks are spread evenly over the period.
            self._push(self._router.report_us * site.index // len(self._sites), self._tick, site)
        self._expect(0)
        events = now_us = 0
        while heap and (cases or self._more):
            when_us, _, do, what = pop(heap)
            if when_us > self._until_us:
                break
            now_us = when_us
            events += 1
            do(now_us, what)
        if cases:
            now_us = self._until_us
            self._stop(now_us)
        self._outcomes.sort(key=lambda outcome: (outcome.at_us, outcome.number))
        return Run(tuple(self._outcomes), self._arrived, now_us, events, self._reports)

    def _push(self, when_us: int, do: Callable[[int, Any], None], what: object) -> None:
        self._number = number = self._number + 1
        heappush(self._heap, (when_us, number, do, what))

    def _way_us(self, edge: int, pool: int) -> int:
        """Draw the time of one message between `edge` and `pool`."""
        mean_us = self._jitter_us[edge][pool]
        half_us = self._half_us[edge][pool]
        return half_us + exponential_us(self._chance, mean_us) if mean_us else half_us

    # Requests at their edges.

    def _expect(self, since_us: int) -> None:
        """Put the next arrival into the future."""
        request = next(self._requests, None)
        if request is None:
            self._more = False
            if self._drains:
                self._until_us = since_us + DRAIN_US
        elif request.at_us < since_us:
            raise ValueError(f"request {request.number} comes before the one that precedes it")
        elif request.at_us > self._until_us:
            self._more = False
        else:
            self._push(request.at_us, self._arrive, request)

    def _arrive(self, now_us: int, request: SimRequest) -> None:
        self._expect(now_us)
        if request.number in self._cases:
            raise ValueError(f"two requests are called {request.number}")
        self._arrived += 1
        if self._progress is not None and self._arrived % PROGRESS_EVERY == 0:
            self._progress(self._arrived)
        case = self._cases[request.number] = _Case(request)
        self._stand(now_us, case)

    def _stand(self, now_us: int, case: _Case) -> None:
        """A request has come to an edge: it goes behind those that are held, or is asked for at once."""
        held = self._held[case.edge]
        if not held:
            self._place(now_us, case)
        elif len(held) < HELD_MAX:
            held.append(case)
        else:
            self._close(case, refused="line_full")

    def _place(self, now_us: int, case: _Case) -> None:
        """Ask for a request that waits for nobody; hold it when the router says so, before those that came after it."""
        if self._ask(now_us, case):
            return
        edge = case.edge
        if len(self._held[edge]) >= HELD_MAX:
            self._close(case, refused="line_full")
            return
        self._held[edge].appendleft(case)
        if not self._timed[edge]:
            self._timed[edge] = True
            self._push(now_us + HOLD_US, self._wake, edge)

    def _wake(self, now_us: int, edge: int) -> None:
        self._timed[edge] = False
        self._ask_held(now_us, edge)
        if self._held[edge]:
            self._timed[edge] = True
            self._push(now_us + HOLD_US, self._wake, edge)

    def _ask_held(self, now_us: int, edge: int) -> None:
        """Ask for the head of the line, and for the next when it may go, until one must stay."""
        held = self._held[edge]
        while held and self._ask(now_us, held[0]):
            held.popleft()

    def _ask(self, now_us: int, case: _Case) -> bool:
        """Do what the router chooses; False when it holds the request."""
        choice = self._router.choose(case.request, case.edge, case.tried, case.hopped, now_us)
        if isinstance(choice, Send):
            self._send(now_us, case, choice)
        elif isinstance(choice, Hold):
            return False
        elif isinstance(choice, Forward):
            self._forward(now_us, case, choice.edge)
        else:
            self._close(case, refused=choice.reason)
        return True

    def _forward(self, now_us: int, case: _Case, edge: int) -> None:
        """Hand a request over to another edge. What comes back comes the same way."""
        if case.hopped or edge == case.edge:
            raise ValueError(f"request {case.request.number} is forwarded twice, or to where it stands")
        hop_us = self._hop_us[case.edge][edge]
        case.hopped = True
        case.back_us = hop_us
        if self._hop_crosses[case.edge][edge]:
            case.hop_crosses = True
            case.moved_bytes += case.request.upload_bytes
        case.edge = edge
        self._push(now_us + hop_us, self._stand, case)

    def _send(self, now_us: int, case: _Case, choice: Send) -> None:
        request, edge, pool = case.request, case.edge, choice.pool
        asked = -1 if choice.replica is None else choice.replica
        case.attempt = attempt = Attempt(request, edge, pool, asked, now_us)
        case.attempts += 1
        if not self._permits(request) >> pool & 1:
            case.violated = True
        case.egress_bytes += request.upload_bytes
        if self._crosses[edge][pool]:
            case.moved_bytes += request.upload_bytes
        upload_us = request.upload_bytes * 1_000_000 // self._bytes_per_s[edge][pool]
        self._push(now_us + upload_us + self._way_us(edge, pool), self._reach, attempt)
        self._router.sent(request, edge, choice, now_us)

    # Attempts at their pools.

    def _reach(self, now_us: int, attempt: Attempt) -> None:
        site = self._sites[attempt.pool]
        if not site.take(attempt, now_us):
            self._refuse(now_us, attempt)
        elif attempt.replica >= 0:
            self._arm(site.replicas[attempt.replica])

    def _refuse(self, now_us: int, attempt: Attempt) -> None:
        attempt.refused = True
        attempt.ended_us = now_us
        if self._router.loads_with_replies:
            attempt.report = self._sites[attempt.pool].told(now_us)
        self._push(now_us + self._way_us(attempt.edge, attempt.pool), self._reply, attempt)

    def _arm(self, replica: Replica) -> None:
        """See to it that the replica is called at its next event. What was planned for another time is passed over."""
        if replica.next_us != replica.armed_us:
            replica.armed_us = replica.next_us
            if replica.next_us != NEVER_US:
                self._push(replica.next_us, self._turn, replica)

    def _turn(self, now_us: int, replica: Replica) -> None:
        """Something happens in a replica: first tokens and last ones set out for their edges, and the line moves up."""
        if replica.armed_us != now_us:
            return
        replica.armed_us = NEVER_US
        firsts, ends = replica.advance(now_us)
        for attempt in firsts:
            attempt.shown_us = now_us + self._way_us(attempt.edge, attempt.pool)
            self._push(attempt.shown_us, self._show, attempt)
        if ends:
            for attempt in ends:
                self._charge(attempt)
                ends_us = now_us + self._way_us(attempt.edge, attempt.pool)
                self._push(max(ends_us, attempt.shown_us), self._reply, attempt)
            site = self._sites[replica.pool]
            if site.line:
                given, refused = site.give_out(now_us)
                for attempt in given:
                    self._arm(site.replicas[attempt.replica])
                for attempt in refused:
                    self._refuse(now_us, attempt)
            if self._router.loads_with_replies:
                report = site.told(now_us)
                for attempt in ends:
                    attempt.report = report
        self._arm(replica)

    def _charge(self, attempt: Attempt) -> None:
        """Bill an attempt that generated something."""
        request, pool = attempt.request, attempt.pool
        case = self._cases[request.number]
        down_bytes = attempt.output_tokens * self._token_bytes
        case.egress_bytes += down_bytes
        if self._crosses[attempt.edge][pool]:
            case.moved_bytes += down_bytes
        if case.hop_crosses:
            case.moved_bytes += down_bytes
        sent_ms = self._start_ms + attempt.sent_us // 1000
        case.cost_pico += self._bill(
            request, pool, attempt.cached_tokens, attempt.output_tokens, sent_ms, request.upload_bytes, down_bytes
        )

    def _go_down(self, now_us: int, site: Site) -> None:
        cut, report = site.go_down(now_us)
        self._tell(now_us, site, report)
        for attempt in cut:
            if attempt.output_tokens:
                self._charge(attempt)
            # The closed socket tells it, without jitter; what set out before it still comes first.
            told_us = now_us + self._half_us[attempt.edge][attempt.pool]
            self._push(max(told_us, attempt.shown_us), self._reply, attempt)

    def _come_up(self, now_us: int, site: Site) -> None:
        report = site.come_up(now_us)
        if report is not None:
            self._tell(now_us, site, report)

    # What edges hear of.

    def _tick(self, now_us: int, site: Site) -> None:
        report = site.news(now_us)
        if report is not None:
            self._tell(now_us, site, report)
        self._push(now_us + self._router.report_us, self._tick, site)

    def _tell(self, now_us: int, site: Site, report: PoolReport) -> None:
        pool, hear = site.index, self._hear
        for edge, row in enumerate(self._half_us):
            self._push(now_us + row[pool], hear, (edge, pool, report))

    def _hear(self, now_us: int, news: tuple[int, int, PoolReport]) -> None:
        edge, pool, report = news
        self._reports += 1
        self._router.reported(edge, pool, report, now_us)
        if self._held[edge]:
            self._ask_held(now_us, edge)

    def _show(self, now_us: int, attempt: Attempt) -> None:
        """The first token reaches the edge that sent the attempt."""
        request = attempt.request
        case = self._cases[request.number]
        case.first_us = now_us + case.back_us - request.at_us
        self._router.first_token(request, attempt.edge, attempt.pool, attempt.replica, now_us)

    def _reply(self, now_us: int, attempt: Attempt) -> None:
        """The end of an attempt reaches its edge: the request is done, or lost, or placed again."""
        request, edge = attempt.request, attempt.edge
        shown_us = attempt.shown_us if attempt.shown_us >= 0 else None
        queued_us = attempt.begun_us - attempt.reached_us if attempt.begun_us >= 0 else 0
        reply = Reply(
            request.number,
            attempt.pool,
            attempt.replica,
            attempt.sent_us,
            shown_us,
            now_us,
            request.prompt_tokens,
            attempt.cached_tokens,
            attempt.output_tokens,
            attempt.refused,
            attempt.broken,
            max(0, queued_us),
            attempt.together,
        )
        if attempt.report is not None:
            self._router.reported(edge, attempt.pool, attempt.report, now_us)
        self._router.replied(request, edge, reply, now_us)
        case = self._cases[request.number]
        if not (attempt.refused or attempt.broken):
            self._close(case, end_us=now_us + case.back_us - request.at_us)
        elif shown_us is not None:
            self._close(case, broken=True)
        elif case.attempts >= ATTEMPTS_MAX:
            self._close(case, refused="attempts_spent")
        else:
            case.tried = (*case.tried, attempt.pool)
            self._place(now_us, case)
        if self._held[edge]:
            self._ask_held(now_us, edge)

    # Ends.

    def _stop(self, now_us: int) -> None:
        """The horizon: what runs is billed for what it made so far, and nothing more ends."""
        for site in self._sites:
            for replica in site.replicas:
                for attempt in replica.break_all(now_us):
                    if attempt.output_tokens:
                        self._charge(attempt)
        for case in list(self._cases.values()):
            self._close(case)

    def _close(
        self, case: _Case, *, end_us: int | None = None, refused: str | None = None, broken: bool = False
    ) -> None:
        """The request is over: write down what became of it."""
        request, attempt = case.request, case.attempt
        del self._cases[request.number]
        if request.at_us < self._warmup_us:
            return
        output_tokens = 0 if attempt is None else attempt.output_tokens
        token_us = None
        if end_us is not None and case.first_us is not None and output_tokens > 1:
            token_us = (end_us - case.first_us) // (output_tokens - 1)
        self._outcomes.append(
            Outcome(
                number=request.number,
                at_us=request.at_us,
                edge=request.edge,
                kind=request.kind,
                pool=-1 if attempt is None else attempt.pool,
                replica=-1 if attempt is None else attempt.replica,
                attempts=case.attempts,
                hopped=case.hopped,
                first_us=case.first_us,
                end_us=end_us,
                prompt_tokens=request.prompt_tokens,
                cached_tokens=0 if attempt is None else attempt.cached_tokens,
                output_tokens=output_tokens,
                token_us=token_us,
                finished=end_us is not None,
                broken=broken,
                refused=refused,
                cost_pico=case.cost_pico,
                egress_bytes=case.egress_bytes,
                moved_bytes=case.moved_bytes,
                violated=case.violated,
            )
        )


def _hop_us(world: World, here: int, there: int) -> int:
    """Return the way between two edges: half a round trip to the nearest pool at home there, else by way of a pool."""
    links = world.links
    at_home = [links[here][pool].rtt_us for pool, edge in enumerate(world.home) if edge == there]
    shared = [mine.rtt_us + its.rtt_us for mine, its in zip(links[here], links[there], strict=True)]
    return min(at_home or shared, default=0) // 2
