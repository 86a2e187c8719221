"""Machines that are broken on purpose: the simulator must notice each, or its silence means nothing.

A mutant is a change of the source of one method. It is compiled into the real class for as long as its test runs.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any

import pytest

from orchestrator.wire import attachments, intake_stream, session_edge, session_intake, silence
from tests.session.simulation import Simulation

SEEDS = 400
"""Worlds in which a mutant is looked for: ``python -m tests.session.test_mutants`` prints the first that notices it."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One way to break a machine, and the seed of a world that notices it."""

    seed: int
    name: str
    module: ModuleType
    owner: str
    method: str
    old: str
    new: str


def edge(seed: int, name: str, method: str, old: str, new: str) -> Mutant:
    return Mutant(seed, name, session_edge, "EdgeSession", method, old, new)


def intake(seed: int, name: str, method: str, old: str, new: str) -> Mutant:
    return Mutant(seed, name, session_intake, "IntakeSession", method, old, new)


def stream(seed: int, name: str, method: str, old: str, new: str) -> Mutant:
    return Mutant(seed, name, intake_stream, "Stream", method, old, new)


MUTANTS = (
    edge(10, "an old epoch is taken", "received", "epoch != self.epoch or (not live", "(not live"),
    edge(11, "lost settlements are forgotten", "connected", "tuple(self._unheard),", "(),"),
    edge(
        17,
        "settlements are taken for heard too early",
        "_beaten",
        "while self._taken < beat.settled",
        "while self._unheard",
    ),
    edge(
        10,
        "a lost attempt is not sent again",
        "_continued",
        "out.append(Send(replace(stream.opened, budget_ms=budget_ms)))",
        "pass",
    ),
    edge(1, "every attempt is sent again", "_continued", "elif number <= welcome.last_stream:", "elif False:"),
    edge(
        87,
        "another instance is believed",
        "_greeted",
        "not welcome.continued or welcome.instance",
        "welcome.instance",
    ),
    edge(64, "wishes are lost while it greets", "_say", "self._wishes.append(frame)", "pass"),
    edge(6, "an attempt that may have begun is called not started", "_broken", "if not stream.left:", "if True:"),
    edge(
        24,
        "credit is forgotten without a transport",
        "consumed",
        "found.limit_bytes += owed",
        "found.limit_bytes += owed * (self.state is State.LIVE)",
    ),
    edge(25, "it waits for ever for a transport", "tick", "self._patience.over(now_us)", "False"),
    edge(
        0,
        "one frame too many is asked for",
        "received",
        "found.next_token += frame.count",
        "found.next_token += frame.count + 1",
    ),
    intake(10, "an old epoch is taken", "received", "epoch != self.epoch or self.state", "self.state"),
    intake(
        10,
        "a greeting of an old epoch is taken",
        "greeted",
        "(epoch <= self.epoch and self.state",
        "(False and self.state",
    ),
    intake(1, "everything kept is said again", "_resumed", "found.read_to(held.received_bytes)", "pass"),
    intake(1, "nothing kept is said again", "_resumed", "for _, frame in found.kept]", "for _, frame in ()]"),
    intake(1, "the end is said once only", "_resumed", "found.ended = held.ended", "pass"),
    intake(1, "credit of the greeting is ignored", "_resumed", "found.limit_bytes = held.limit_bytes", "pass"),
    intake(77, "a cancel in the greeting is ignored", "_resumed", "if held.cancelled:", "if False:"),
    intake(11, "settlements in the greeting are ignored", "_reattach", "if number in self._streams:", "if False:"),
    intake(1, "it speaks without a transport", "_flush", "if self.state is _DETACHED:", "if False:"),
    intake(0, "a lost session is kept for ever", "tick", "self.reattach_ms * 1000", "self.reattach_ms * 1000_000"),
    intake(1, "what is held without a transport is not counted", "tokens", "self.detached_bytes += size_bytes", "pass"),
    intake(
        16,
        "a cancel lets go what was sent",
        "_cancelled",
        "found.drop_ready()",
        "found.drop_ready(); found.kept.clear(); found.kept_from = found.sent_bytes",
    ),
    intake(1, "an engine waits on", "_flush", "out.append(GoOn(stream))", "pass"),
    intake(3, "a reader who reads nothing is waited for", "tick", "for stream in slow for", "for stream in () for"),
    intake(0, "settlements are not counted", "_streamed", "self._settles += 1", "pass"),
    stream(1, "read too far", "read_to", "<= place_bytes", "<= place_bytes + 300"),
    stream(
        1,
        "nothing is kept",
        "frame",
        "self.kept.append((size_bytes, frame))",
        "self.kept_from += size_bytes",
    ),
    stream(0, "what was read is kept", "read_to", "while kept and", "while False and"),
    Mutant(
        10,
        "an old transport takes over",
        attachments,
        "Attachments",
        "greeted",
        "and hello.epoch > known.epoch",
        "",
    ),
    Mutant(
        140,
        "a session that ended begins anew",
        attachments,
        "Attachments",
        "greeted",
        "or key not in self._ended",
        "or True",
    ),
    Mutant(
        22,
        "sessions without a transport have no bound",
        attachments,
        "Attachments",
        "_beyond",
        "self.held_bytes > self._limits.detached_bytes",
        "False",
    ),
    Mutant(
        7,
        "our own pause counts as silence",
        silence,
        "Silence",
        "_late_us",
        "max(0, now_us - self._ticked_us - self._span_us)",
        "0",
    ),
)


def broken(mutant: Mutant) -> Callable[..., Any]:
    """Return the method of the mutant, bound to the names of the real module."""
    owner = getattr(mutant.module, mutant.owner)
    source = textwrap.dedent(inspect.getsource(inspect.getattr_static(owner, mutant.method)))
    assert source.count(mutant.old) == 1, f"{source.count(mutant.old)} places in {mutant.method}: write the mutant anew"
    names: dict[str, Any] = {}
    code = f"from __future__ import annotations\n{source.replace(mutant.old, mutant.new)}"
    exec(compile(code, f"mutant of {mutant.method}", "exec"), vars(mutant.module), names)  # noqa: S102  # our own source
    made = names[mutant.method]
    assert callable(made)
    return made  # type: ignore[no-any-return]


def noticed(seed: int) -> bool:
    """Whether a promise is broken in this world."""
    try:
        Simulation(seed).run()
    except Exception:  # noqa: BLE001  # outermost: whatever the mutant breaks, it was noticed
        return True
    return False


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.owner}: {mutant.name}")
def test_the_simulator_notices(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(getattr(mutant.module, mutant.owner), mutant.method, broken(mutant))
    assert noticed(mutant.seed), "look for another world: python -m tests.session.test_mutants"


def test_a_mutant_is_compiled_with_the_names_of_its_module() -> None:
    made = broken(MUTANTS[0])
    assert isinstance(made, FunctionType)
    assert made.__globals__ is vars(session_edge)


def main() -> None:
    """Print the first world that notices each mutant."""
    for mutant in MUTANTS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(getattr(mutant.module, mutant.owner), mutant.method, broken(mutant))
            print(next((seed for seed in range(SEEDS) if noticed(seed)), None), mutant.owner, mutant.name)


if __name__ == "__main__":
    main()
