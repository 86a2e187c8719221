"""Dischargers: what does the duties that come with a permission. Each says what it did, for the record.

A discharger that cannot do its duty, and a duty without a discharger, are a refusal: nothing is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import msgspec

from orchestrator.evidence.inputs import InputManifest
from orchestrator.policy.facts import Facts
from orchestrator.policy.ids import DecisionId
from orchestrator.policy.packs import Obligation, ObligationKind

DISCLOSURE_HEADER = "x-ai-disclosure"
LABEL_HEADER = "x-ai-label"


class Means(msgspec.Struct, frozen=True):
    """What dischargers act with."""

    facts: Facts
    decision: DecisionId
    inputs: InputManifest | None
    """The input manifest that this program signed or checked; None where there is none."""


class Done(msgspec.Struct, frozen=True):
    """What one discharger did."""

    obligation: Obligation
    did: str
    headers: tuple[tuple[str, str], ...] = ()
    """What the answer must carry for it."""


def _retain(duty: Obligation, means: Means) -> Done | None:
    # The spool reads the class from the record's frame and refuses to delete earlier.
    return Done(duty, f"retention class {duty.argument} on this record")


def _prove_no_domestic_input(duty: Obligation, means: Means) -> Done | None:
    inputs = means.inputs
    if inputs is None or not inputs.proves_none(duty.argument):
        return None
    return Done(duty, f"input manifest {inputs.digest} states none of {duty.argument}")


def _disclose(duty: Obligation, means: Means) -> Done | None:
    return Done(duty, f"header {DISCLOSURE_HEADER}", ((DISCLOSURE_HEADER, duty.argument),))


def _label(duty: Obligation, means: Means) -> Done | None:
    return Done(duty, f"header {LABEL_HEADER}", ((LABEL_HEADER, f'{duty.argument}; id="{means.decision}"'),))


def _notify(duty: Obligation, means: Means) -> Done | None:
    version = means.facts.notice(duty.argument)
    return None if version is None else Done(duty, f"notice {duty.argument} version {version}")


DISCHARGERS: dict[ObligationKind, Callable[[Obligation, Means], Done | None]] = {
    ObligationKind.RETAIN: _retain,
    ObligationKind.PROVE_NO_DOMESTIC_INPUT: _prove_no_domestic_input,
    ObligationKind.DISCLOSE: _disclose,
    ObligationKind.LABEL: _label,
    ObligationKind.NOTIFY: _notify,
}
"""What does each duty."""


def discharge(obligations: Collection[Obligation], means: Means) -> tuple[Done, ...] | None:
    """Return what the dischargers did, or None when a duty is not done: then nothing may be sent."""
    done: tuple[Done, ...] = ()
    for duty in obligations:
        try:
            discharger = DISCHARGERS[duty.kind]
        except KeyError:
            return None
        did = discharger(duty, means)
        if did is None:
            return None
        done += (did,)
    return done
