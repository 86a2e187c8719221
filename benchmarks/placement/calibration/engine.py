"""The embedded engine on its real model: what its steps take, and how it answers a load in real time.

Every event is read on two clocks, the wall's and the processor clock of the engine's thread; with one thread the engine
computes on no other. The second does not run while another process has the core, so what a step takes can be measured
on a machine that is shared. It still tells of slower memory and of a sibling on the same core.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures import median
from benchmarks.placement.calibration.fit import Sample, Tick, core_share, own_times
from benchmarks.placement.calibration.prompts import prompt_of
from benchmarks.placement.calibration.simulated import Answer, Ask
from orchestrator.engines.generation import (
    Delta,
    EngineEvent,
    Finished,
    Generation,
    Message,
    ModelId,
    Role,
    Sampling,
    Started,
)
from scheduler.pools.engine.batch import PREFILL_CHUNK_TOKENS
from scheduler.pools.engine.loop import Engine, Handle

SLOTS = 4
CONTEXT_TOKENS = 2_048
WAITING_MAX = 64
ANSWER_S = 300.0
"""The longest that one answer may take."""
STOP_S = 30.0
POLL_S = 0.02
"""How often the engine's own clock is read while an arrival is waited for."""
TOGETHER_STEPS = 16
"""Steps for which streams decode beside each other."""
JOINER_TOKENS = 256
SHORT_TOKENS = 64
PREFILLS = (64, 128, 256, 512, 1_024)
"""Whole chunks, so that every step of one is alike but for its context."""
DECODES = ((1, SHORT_TOKENS), (2, SHORT_TOKENS), (3, SHORT_TOKENS), (4, SHORT_TOKENS), (1, 512))
"""Streams beside each other, and how long the prompt of each was."""
MIXES = (1, 2, 3)
"""Streams that decode while a prompt is taken in."""

Say = Callable[[str], None]


class EngineTroubleError(Exception):
    """The engine did not answer, or not as it was asked."""


class Recorder:
    """The ticks of one engine, in order. The engine's thread and the caller's write them."""

    def __init__(self) -> None:
        self.ticks: list[Tick] = []  # bounded: by the answers of one run
        self._lock = threading.Lock()
        self._clock: int | None = None
        self._open = 0
        self._own_ns = 0
        """The engine's own clock at the last tick; see `fit.own_times`."""

    def restart(self) -> None:
        """Forget the ticks; the next ones count from now. Only while the engine has no work."""
        with self._lock:
            self.ticks.clear()
            self._own_ns = 0
            self._add(self._cpu_ns())

    def own_ns(self) -> int:
        """Return the engine's own clock, since the first tick."""
        with self._lock:
            last = self.ticks[-1]
            now = Tick(time.perf_counter_ns(), self._cpu_ns(), last.busy)
            return self._own_ns + own_times((last, now))[1]

    def submitted(self) -> int:
        """One more request is there; return the number of the tick."""
        with self._lock:
            self._open += 1
            return self._add(self._cpu_ns())

    def told(self, over: bool) -> int:
        """The engine's thread tells of a request; return the number of the tick."""
        with self._lock:
            if self._clock is None:
                self._clock = time.pthread_getcpuclockid(threading.get_ident())
            self._open -= over
            return self._add(time.thread_time_ns())

    def _cpu_ns(self) -> int:
        """Return the clock of the engine's thread; 0 before it has told of anything."""
        return 0 if self._clock is None else time.clock_gettime_ns(self._clock)

    def _add(self, cpu_ns: int) -> int:
        tick = Tick(time.perf_counter_ns(), cpu_ns, self._open > 0)
        if self.ticks:
            self._own_ns += own_times((self.ticks[-1], tick))[1]
        self.ticks.append(tick)
        return len(self.ticks) - 1


class Asked:
    """One request: the sink of its events, which it keeps as numbers of ticks."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._over = threading.Event()
        self._first = threading.Event()
        self.handle = Handle(0)
        self.submitted = recorder.submitted()
        self.started = -1
        self.deltas: list[int] = []  # bounded: by the answer
        self.end: EngineEvent | None = None
        self.prompt_tokens = 0

    def __call__(self, event: EngineEvent) -> None:
        """Take an event. Called by the engine's thread."""
        goes_on = isinstance(event, Started | Delta)
        tick = self._recorder.told(not goes_on)
        if isinstance(event, Started):
            self.started, self.prompt_tokens = tick, event.prompt_tokens
        elif isinstance(event, Delta):
            self.deltas.append(tick)
            self._first.set()
        else:
            self.end = event
            self._first.set()
            self._over.set()

    def wait_first(self) -> None:
        """Wait for the first token. Raises EngineTroubleError."""
        if not self._first.wait(ANSWER_S):
            raise EngineTroubleError(f"no token within {ANSWER_S:.0f} s")

    def wait(self) -> None:
        """Wait for the end. Raises EngineTroubleError when it is none that was asked for."""
        if not self._over.wait(ANSWER_S):
            raise EngineTroubleError(f"no whole answer within {ANSWER_S:.0f} s")
        if not isinstance(self.end, Finished):
            raise EngineTroubleError(f"the engine ended an answer with {type(self.end).__name__}")


class Bench:
    """A running engine and everything that is recorded of it."""

    def __init__(self, engine: Engine, model: ModelId) -> None:
        """`engine` serves already."""
        self._engine = engine
        self._model = model
        self.recorder = Recorder()
        # The first request starts the reader's thread and touches every page of the model.
        self.ask(prompt_of(SHORT_TOKENS), 4).wait()
        self.recorder.restart()

    def ask(self, text: str, tokens_max: int) -> Asked:
        """Submit one greedy request."""
        asked = Asked(self.recorder)
        sampling = Sampling(temperature=0.0, max_tokens=tokens_max)
        asked.handle = self._engine.submit(Generation(self._model, (Message(Role.USER, text),), sampling), asked)
        return asked

    def cancel(self, asked: Asked) -> None:
        """End a request and wait until it is over."""
        self._engine.cancel(asked.handle)
        asked.wait()

    def cpu_ns(self, tick: int) -> int:
        """Return the engine's clock at a tick."""
        return self.recorder.ticks[tick].cpu_ns


@contextmanager
def running(model_dir: Path, model: str) -> Iterator[Bench]:
    """Serve a prepared model from one thread of this process for as long as the block runs."""
    engine = Engine(
        model_dir,
        slots=SLOTS,
        context_tokens=CONTEXT_TOKENS,
        waiting_max=WAITING_MAX,
        threads=1,
        entropy=itertools.count(1).__next__,
    )
    engine.start()
    try:
        yield Bench(engine, ModelId(model))
    finally:
        engine.stop(STOP_S)


def chunks_of(prompt_tokens: int) -> int:
    """Return the steps in which a prompt is taken in."""
    return -(-prompt_tokens // PREFILL_CHUNK_TOKENS)


def probed(bench: Bench, repeats: int, say: Say) -> list[Sample]:
    """Measure stretches of steps of every kind, each so many times. Raises EngineTroubleError."""
    found: list[Sample] = []
    for number in range(repeats):
        found += [probe_prefill(bench, tokens) for tokens in PREFILLS]
        found += [probe_decode(bench, streams, tokens) for streams, tokens in DECODES]
        found += [probe_mix(bench, streams, JOINER_TOKENS) for streams in MIXES]
        say(f"  probes: {number + 1} of {repeats}")
    return found


def probe_prefill(bench: Bench, tokens: int) -> Sample:
    """One prompt is taken in, and nothing else happens. Raises EngineTroubleError."""
    asked = bench.ask(prompt_of(tokens), 1)
    asked.wait()
    took_ns = bench.cpu_ns(asked.deltas[0]) - bench.cpu_ns(asked.started)
    taken = asked.prompt_tokens
    return Sample(f"prompt of {tokens}", chunks_of(taken), 0, taken, took_ns)


def probe_decode(bench: Bench, streams: int, prompt_tokens: int) -> Sample:
    """So many streams decode, and no prompt is taken in: the median step. Raises EngineTroubleError."""
    begun = _together(bench, streams, prompt_tokens, TOGETHER_STEPS)
    for asked in begun:
        asked.wait()
    last = begun[-1]
    ends = [asked.deltas[-1] for asked in begun]
    times = [bench.cpu_ns(tick) for tick in last.deltas if tick <= min(ends) or streams == 1]
    steps = [after - before for before, after in itertools.pairwise(times)]
    if not steps:
        raise EngineTroubleError(f"{streams} streams never decoded beside each other")
    return Sample(f"{streams} decode after {prompt_tokens}", 1, streams, 0, median(steps))


def probe_mix(bench: Bench, streams: int, tokens: int) -> Sample:
    """A prompt is taken in while so many streams decode. Raises EngineTroubleError."""
    begun = _together(bench, streams, SHORT_TOKENS, chunks_of(tokens) + TOGETHER_STEPS)
    joiner = bench.ask(prompt_of(tokens), 1)
    joiner.wait()
    for asked in begun:
        bench.cancel(asked)
    steps = chunks_of(joiner.prompt_tokens)
    stream_steps = sum(joiner.started < tick < joiner.deltas[0] for asked in begun for tick in asked.deltas)
    if stream_steps != streams * steps:
        raise EngineTroubleError("a stream ended before the prompt beside it was taken in")
    took_ns = bench.cpu_ns(joiner.deltas[0]) - bench.cpu_ns(joiner.started)
    return Sample(f"prompt of {tokens} beside {streams}", steps, stream_steps, joiner.prompt_tokens, took_ns)


def _together(bench: Bench, streams: int, prompt_tokens: int, steps: int) -> list[Asked]:
    """Begin streams and wait until all decode. Each goes on for about `steps` more."""
    chunks = chunks_of(prompt_tokens)
    begun = [
        bench.ask(prompt_of(prompt_tokens), (streams - 1 - number) * chunks + steps + 1) for number in range(streams)
    ]
    for asked in begun:
        asked.wait_first()
    return begun


@dataclass(frozen=True, slots=True)
class Played:
    """A load as the engine answered it, on one clock."""

    asks: tuple[Ask, ...]
    """When each came, and with the lengths that the engine counted."""
    answers: tuple[Answer, ...]


@dataclass(frozen=True, slots=True)
class Replayed:
    """A load as the engine answered it: by the wall clock, and by its own."""

    wall: Played
    own: Played
    share: float
    """Of a core that it got while it had work."""


def played(bench: Bench, asks: Sequence[Ask]) -> Replayed:
    """Ask all of it and wait for every answer. Arrivals are timed by the engine's own clock, so that a load is as high
    for an engine that has to share its core. Raises EngineTroubleError.
    """
    recorder = bench.recorder
    recorder.restart()
    found: list[Asked] = []
    for ask in asks:
        while (left_s := ask.at_us / 1_000_000 - recorder.own_ns() / 1_000_000_000) > 0:
            time.sleep(min(left_s, POLL_S))
        found.append(bench.ask(prompt_of(ask.prompt_tokens), ask.output_tokens))
    for asked in found:
        asked.wait()
    ticks = tuple(recorder.ticks)
    wall_ns = [tick.wall_ns - ticks[0].wall_ns for tick in ticks]
    return Replayed(_by(found, wall_ns), _by(found, own_times(ticks)), core_share(ticks))


def _by(found: Sequence[Asked], times_ns: Sequence[int]) -> Played:
    asks, answers = [], []
    for asked in found:
        at_ns = times_ns[asked.submitted]
        asks.append(Ask(at_ns // 1000, asked.prompt_tokens, len(asked.deltas)))
        first_ns, end_ns = times_ns[asked.deltas[0]] - at_ns, times_ns[asked.deltas[-1]] - at_ns
        answers.append(Answer(first_ns // 1000, end_ns // 1000))
    return Played(tuple(asks), tuple(answers))
