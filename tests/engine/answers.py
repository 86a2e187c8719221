"""What a test holds of one request: a sink that records, can hold the engine still, and can be waited for."""

from __future__ import annotations

import threading
from collections.abc import Callable

from orchestrator.engines.generation import (
    Delta,
    EngineEvent,
    Failed,
    Finished,
    Generation,
    Message,
    ModelId,
    Refused,
    Role,
    Sampling,
    Started,
)
from scheduler.pools.engine.loop import Engine, Handle

WAIT_S = 30.0


class Answer:
    """Records the events of one request. `on_delta` runs in the engine's thread, with how many deltas came so far."""

    def __init__(self, on_delta: Callable[[int], None] | None = None) -> None:
        self.events: list[EngineEvent] = []
        self.handle = Handle(0)
        self.over = threading.Event()
        self.deltas = 0
        self._on_delta = on_delta

    def __call__(self, event: EngineEvent) -> None:
        self.events.append(event)
        if isinstance(event, Delta):
            self.deltas += 1
            if self._on_delta is not None:
                self._on_delta(self.deltas)
        elif not isinstance(event, Started):
            self.over.set()

    def wait(self) -> Answer:
        """Wait for the terminal event and hold the order of events against the interface."""
        assert self.over.wait(WAIT_S), "no terminal event came"
        assert all(isinstance(event, Delta) for event in self.events[1:-1])
        assert len(self.events) == 1 or isinstance(self.events[0], Started)
        if isinstance(self.events[-1], Finished):
            assert self.events[-1].completion_tokens == sum(delta.tokens for delta in self.all_deltas)
        return self

    @property
    def all_deltas(self) -> list[Delta]:
        """Every delta, in order."""
        return [event for event in self.events if isinstance(event, Delta)]

    @property
    def text(self) -> str:
        """The answer."""
        return "".join(delta.text for delta in self.all_deltas)

    @property
    def token_ids(self) -> list[int]:
        """The tokens behind the answer."""
        return [token_id for delta in self.all_deltas for token_id in delta.token_ids]

    @property
    def finished(self) -> Finished:
        """The good end."""
        end = self.events[-1]
        assert isinstance(end, Finished), end
        return end

    @property
    def refused(self) -> Refused:
        """The refusal, which is then the only event."""
        (event,) = self.events
        assert isinstance(event, Refused), event
        return event

    @property
    def failed(self) -> Failed:
        """The bad end."""
        end = self.events[-1]
        assert isinstance(end, Failed), end
        return end


class Hold:
    """Stands in a sink and holds the engine's thread still until released."""

    def __init__(self, at_delta: int = 1) -> None:
        self._at_delta = at_delta
        self._reached = threading.Event()
        self._released = threading.Event()

    def __call__(self, deltas: int) -> None:
        if deltas == self._at_delta:
            self._reached.set()
            assert self._released.wait(WAIT_S)

    def wait_reached(self) -> None:
        """Wait until the engine stands still."""
        assert self._reached.wait(WAIT_S)

    def release(self) -> None:
        """Let the engine go on."""
        self._released.set()


def generation(
    text: str = "hello hello",
    *,
    model: str = "tiny",
    temperature: float = 0.0,
    max_tokens: int | None = 40,
    top_p: float = 1.0,
    seed: int | None = None,
    stop: tuple[str, ...] = (),
    ignore_eos: bool = False,
    min_tokens: int = 0,
) -> Generation:
    """One user message; greedy unless told otherwise."""
    sampling = Sampling(temperature, top_p, seed, stop, max_tokens, ignore_eos, min_tokens)
    return Generation(ModelId(model), (Message(Role.USER, text),), sampling)


def ask(engine: Engine, wanted: Generation, on_delta: Callable[[int], None] | None = None) -> Answer:
    """Submit; the answer is told as it comes."""
    answer = Answer(on_delta)
    answer.handle = engine.submit(wanted, answer)
    return answer
