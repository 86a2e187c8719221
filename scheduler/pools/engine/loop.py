"""The embedded engine: a thread that owns a model and answers many requests at once.

Every request that is accepted ends in exactly one terminal event, whatever happens to the engine. Three threads meet
here: the caller's (`submit`, `cancel`, `load`, `stop`), the reader's, which renders prompts one after another, and the
engine's, which owns the model and the batch and tells the sinks.

The hosting process is started with `process.ENVIRONMENT`; without it the engine works, but slowly on a busy machine.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from orchestrator.engines.generation import (
    Delta,
    EngineEvent,
    Failed,
    Finished,
    FinishReason,
    Generation,
    ModelId,
    Refused,
    Started,
)
from scheduler.pools.engine.accept import refusal_of
from scheduler.pools.engine.batch import Batch, Handle, Row, Step
from scheduler.pools.engine.detokenise import AnswerText
from scheduler.pools.engine.identity import ModelIdentity
from scheduler.pools.engine.model import ServedModel
from scheduler.pools.engine.prompt import Prompt
from scheduler.pools.engine.resume import Taken, take_up
from scheduler.pools.engine.sampling import SEED_MASK, Drawing

__all__ = ["IDLE_BEAT_S", "STEP_GRACE_S", "Engine", "EngineLoad", "Handle", "Sink"]

IDLE_BEAT_S = 0.25
"""How long an idle engine sleeps between two beats; work wakes it at once."""
STEP_GRACE_S = 10.0
"""How long `stop` waits beyond its deadline for the step that is under way."""

_log = logging.getLogger(__name__)

Sink = Callable[[EngineEvent], None]


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """How full the engine is."""

    running: int
    """Requests in a slot."""
    waiting: int
    """Requests accepted that have no slot yet."""
    slots: int
    queued_tokens: int
    """Prompt tokens that wait for their turn: of every prompt that is rendered, what is not in the cache yet."""
    kv_tokens: int
    """Tokens whose keys and values fit: the context of every slot."""
    kv_used_tokens: int

    @property
    def kv_used_share(self) -> float:
        """Share of the key-value memory in use, 0 to 1."""
        return self.kv_used_tokens / self.kv_tokens


class _Phase(Enum):
    NEW = "new"
    READY = "ready"
    DRAINING = "draining"
    ENDED = "ended"


@dataclass(slots=True, eq=False)
class _Request:
    handle: Handle
    generation: Generation
    sink: Sink
    rendering: Future[Prompt | Refused]
    prompt: Prompt | None = None
    text: AnswerText | None = None
    """Of its answer, once the prompt is rendered."""
    taken: Taken | None = None
    """Where its answer begins."""
    row: Row | None = None
    """Once it has a slot."""

    def queued_tokens(self) -> int:
        """Prompt tokens that are rendered and not in the cache. Off by one step where the engine's thread is in it."""
        if self.prompt is None:
            return 0
        return max(0, len(self.prompt.read_ids) - (0 if self.row is None else self.row.fed))


class Engine:
    """One model served from one thread.

    Sinks are called from the engine's thread, in order: `Started` once the prompt is rendered and fits, a `Delta` for
    each token, one terminal event. A request turned away at the door (unknown model, bad sampling, no room, engine not
    running) hears its one event from the submitting thread before `submit` returns. A request cancelled before its
    prompt was rendered ends without a `Started`. A sink must not block: it holds up every answer. A sink that raises
    loses its request and is not called again.
    """

    def __init__(
        self,
        model_dir: Path,
        *,
        slots: int,
        context_tokens: int,
        waiting_max: int,
        threads: int,
        entropy: Callable[[], int],
        serves: ModelId | None = None,
    ) -> None:
        """`slots` answers run at once, each of at most `context_tokens` with its prompt; `waiting_max` more may wait.

        `threads` is how many cores a step may use; `entropy` gives 64 bits for a request without a seed; `serves` is
        the name requests must ask for, by default the one the model was prepared under. Raises ValueError.
        """
        if min(slots, context_tokens, threads) < 1 or waiting_max < 0:
            raise ValueError("slots, context_tokens and threads are at least 1, and waiting_max at least 0")
        self._model_dir = model_dir
        self._slots = slots
        self._context_tokens = context_tokens
        self._waiting_max = waiting_max
        self._threads = threads
        self._entropy = entropy
        self._serves = serves
        self._numbers = itertools.count(1)
        self._model: ServedModel | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine-reader")
        self._loading: Future[ModelIdentity] = Future()
        # Everything below is shared between threads and touched only under this condition.
        self._changed = threading.Condition()
        self._phase = _Phase.NEW
        self._stop_at: float | None = None
        self._waiting: deque[_Request] = deque()  # bounded: by slots and waiting_max, at the door
        self._running: dict[Handle, _Request] = {}
        self._cancelled: set[Handle] = set()
        self._progress = 0
        self._kv_tokens = 0

    def start(self, timeout_s: float = 300.0) -> ModelIdentity:
        """Load the model in the engine's thread and wait until it serves.

        Raises what `ServedModel` raises, TimeoutError, and RuntimeError when started twice or after `stop`.
        """
        with self._changed:
            if self._phase is not _Phase.NEW:
                raise RuntimeError(f"the engine is {self._phase.value}")
        self._thread.start()
        return self._loading.result(timeout_s)

    @property
    def healthy(self) -> bool:
        """Whether the engine takes requests."""
        with self._changed:
            return self._phase is _Phase.READY

    @property
    def progress(self) -> int:
        """A number that grows with every step, and while idle every `IDLE_BEAT_S`. One that stands still is stuck."""
        with self._changed:
            return self._progress

    def load(self) -> EngineLoad:
        """How full the engine is now."""
        with self._changed:
            queued = sum(request.queued_tokens() for request in (*self._running.values(), *self._waiting))
            room = self._slots * self._context_tokens
            return EngineLoad(len(self._running), len(self._waiting), self._slots, queued, room, self._kv_tokens)

    def submit(self, generation: Generation, sink: Sink) -> Handle:
        """Ask for one answer; any thread. Never raises for a request: what is wrong with it is told to the sink."""
        handle = Handle(next(self._numbers))
        request = self._admit(handle, generation, sink)
        if isinstance(request, _Request):
            request.rendering.add_done_callback(self._wake)
        else:
            _tell(sink, request)
        return handle

    def cancel(self, handle: Handle) -> None:
        """End a request; any thread. Its slot is free at the next step. Nothing happens when it is over already."""
        with self._changed:
            if handle in self._running or any(request.handle == handle for request in self._waiting):
                self._cancelled.add(handle)
                self._changed.notify_all()

    def stop(self, deadline_s: float) -> bool:
        """Take no more requests, let the accepted ones end for `deadline_s`, fail the rest, free the model.

        Waits. True when the engine's thread has ended; False when a step is stuck, after `STEP_GRACE_S` more.
        """
        with self._changed:
            if self._phase is _Phase.NEW:
                self._phase = _Phase.ENDED
            elif self._phase is _Phase.READY:
                self._phase = _Phase.DRAINING
            if self._stop_at is None:
                self._stop_at = time.monotonic() + deadline_s
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(deadline_s + STEP_GRACE_S)
        self._reader.shutdown(wait=False, cancel_futures=True)
        return not self._thread.is_alive()

    def _admit(self, handle: Handle, generation: Generation, sink: Sink) -> _Request | Refused | Failed:
        with self._changed:
            model = self._model
            if self._phase is not _Phase.READY or model is None:
                return Failed("engine_unreachable", f"The engine takes no requests; it is {self._phase.value}.")
            refusal = refusal_of(generation, self._serves or model.name)
            if refusal is not None:
                return refusal
            accepted = len(self._waiting) + len(self._running)
            if accepted >= self._slots + self._waiting_max:
                return Refused(
                    "engine_busy",
                    f"The engine has {self._slots} slots and {self._waiting_max} places to wait; all are taken.",
                )
            rendering = self._reader.submit(model.prompter.render, generation)
            request = _Request(handle, generation, sink, rendering)
            self._waiting.append(request)
            return request

    def _wake(self, _: object) -> None:
        with self._changed:
            self._changed.notify_all()

    def _run(self) -> None:
        ending = "The engine was stopped."
        try:
            model = ServedModel(
                self._model_dir, slots=self._slots, context_tokens=self._context_tokens, threads=self._threads
            )
            batch = Batch(model, self._slots)
            self._open(model)
            while self._turn(model, batch):
                pass
        except Exception as error:  # noqa: BLE001  # outermost: of the engine's thread; every request must hear of it
            # The class alone: a message could quote what the engine was working on.
            ending = f"The engine failed in a step ({type(error).__name__})."
            _log.error("engine failed: %s", type(error).__name__)
            if not self._loading.done():
                self._loading.set_exception(error)
        finally:
            self._close(ending)

    def _open(self, model: ServedModel) -> None:
        with self._changed:
            self._model = model
            if self._phase is _Phase.NEW:
                self._phase = _Phase.READY
        self._loading.set_result(model.identity)

    def _close(self, ending: str) -> None:
        with self._changed:
            self._phase = _Phase.ENDED
            left = [*self._running.values(), *self._waiting]
            self._running.clear()
            self._waiting.clear()
            self._cancelled.clear()
            self._kv_tokens = 0
            self._model = None
        self._reader.shutdown(wait=False, cancel_futures=True)
        for request in left:
            _tell(request.sink, Failed("engine_failed", ending))

    def _turn(self, model: ServedModel, batch: Batch) -> bool:
        """One step of everything; False when the engine is to end."""
        with self._changed:
            if len(batch) == 0:
                self._changed.wait_for(self._has_news, IDLE_BEAT_S)
            self._progress += 1
            if self._must_end():
                return False
            cancelled, self._cancelled = self._cancelled, set()
            rendered = [request for request in self._waiting if request.prompt is None and request.rendering.done()]
        for handle in cancelled:
            self._end_cancelled(batch, handle)
        for request in rendered:
            if request.handle not in cancelled:
                self._settle(model, request)
        self._join_next(model, batch)
        for step in batch.decode():
            self._deliver(batch, step)
        step_of_joining = batch.prefill()
        if step_of_joining is not None:
            self._deliver(batch, step_of_joining)
        with self._changed:
            self._kv_tokens = batch.kv_tokens
        return True

    def _has_news(self) -> bool:
        return (
            self._phase is not _Phase.READY
            or bool(self._cancelled)
            or any(request.rendering.done() for request in self._waiting)
        )

    def _must_end(self) -> bool:
        if self._phase is _Phase.READY:
            return False
        idle = not self._running and not self._waiting
        return self._phase is _Phase.ENDED or idle or (self._stop_at is not None and time.monotonic() >= self._stop_at)

    def _end_cancelled(self, batch: Batch, handle: Handle) -> None:
        row = batch.leave(handle)
        request = self._forget(handle)
        if request is None:
            return
        request.rendering.cancel()
        prompt_tokens = len(request.prompt.token_ids) if request.prompt is not None else 0
        generated = row.generated - len(row.prompt.said_ids) if row is not None else 0
        _tell(request.sink, Finished(FinishReason.CANCELLED, prompt_tokens, generated))

    def _settle(self, model: ServedModel, request: _Request) -> None:
        """The reader is done with a prompt: tell that it was accepted, or why not."""
        error = request.rendering.exception()
        if error is not None:
            _log.error("a prompt could not be rendered: %s", type(error).__name__)
            outcome: EngineEvent = Failed("engine_failed", "The engine could not render the prompt.")
        else:
            outcome = self._opened(model, request, request.rendering.result())
        taken = request.taken
        if not _tell(request.sink, outcome) or taken is None:
            self._forget(request.handle)
        elif taken.finished is not None:
            # The last token was said before it came here; only the end was lost.
            self._forget(request.handle)
            if not taken.owed or _tell(request.sink, Delta(taken.owed, (), 0)):
                prompt_tokens = 0 if request.prompt is None else len(request.prompt.token_ids)
                _tell(request.sink, Finished(taken.finished, prompt_tokens, 0))

    def _opened(self, model: ServedModel, request: _Request, prompt: Prompt | Refused) -> Started | Refused:
        """Open the text of an answer, at its begin or where it was cut."""
        if isinstance(prompt, Refused):
            return prompt
        said = request.generation.said
        sampling = request.generation.sampling
        text = AnswerText(model.prompter.token_table, sampling.stop)
        taken = Taken("", None) if said is None else take_up(text, said, model.end_ids, prompt.tokens_max, sampling)
        if isinstance(taken, Refused):
            return taken
        request.prompt, request.text, request.taken = prompt, text, taken
        return Started(len(prompt.token_ids))

    def _join_next(self, model: ServedModel, batch: Batch) -> None:
        if not batch.can_join:
            return
        with self._changed:
            # The reader works in order, so the first in line is the first that is ready.
            if not self._waiting or self._waiting[0].prompt is None:
                return
            request = self._waiting.popleft()
            self._running[request.handle] = request
        prompt, text, sampling = request.prompt, request.text, request.generation.sampling
        if prompt is None or text is None or request.taken is None:
            raise RuntimeError("a request without a prompt was taken from the line")
        seed = self._entropy() & SEED_MASK if sampling.seed is None else sampling.seed
        drawing = Drawing(sampling.temperature, sampling.top_p, seed, sampling.ends_from)
        request.row = Row(request.handle, prompt, drawing, text, 0, len(prompt.said_ids), request.taken.owed)
        batch.join(request.row)

    def _deliver(self, batch: Batch, step: Step) -> None:
        row = step.row
        with self._changed:
            request = self._running.get(row.handle)
        if request is None:
            raise RuntimeError("the batch holds a request that the engine does not run")
        heard = _tell(request.sink, step.delta)
        if step.finished is not None or not heard:
            batch.leave(row.handle)
            self._forget(row.handle)
        if step.finished is not None and heard:
            generated = row.generated - len(row.prompt.said_ids)
            _tell(request.sink, Finished(step.finished, len(row.prompt.token_ids), generated))

    def _forget(self, handle: Handle) -> _Request | None:
        with self._changed:
            running = self._running.pop(handle, None)
            if running is not None:
                return running
            for request in self._waiting:
                if request.handle == handle:
                    self._waiting.remove(request)
                    return request
        return None


def _tell(sink: Sink, event: EngineEvent) -> bool:
    """Call a sink; False when it raised."""
    try:
        sink(event)
    except Exception as error:  # noqa: BLE001  # outermost: of the caller's code; one sink must not end other answers
        _log.error("a sink raised %s; its request is dropped", type(error).__name__)
        return False
    return True
