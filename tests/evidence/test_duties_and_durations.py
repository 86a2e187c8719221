"""No record is kept too short, and no text is spelled in two ways."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.evidence.canonical import canonical_bytes
from orchestrator.evidence.records import DAY_MS, owed, retain_until_ms
from orchestrator.files.pack_shapes import PackDocument
from orchestrator.files.packs import pack_of
from orchestrator.files.typed import fit
from tests.intake.small_house import oblige, pack


@pytest.mark.parametrize(
    ("text", "days"), [("P1Y6M", 366 + 6 * 31), ("P1Y2M3D", 366 + 62 + 3), ("P1Y2M1W3D", 366 + 62 + 7 + 3), ("P0D", 0)]
)
def test_a_duration_of_several_parts_is_their_sum(text: str, days: int) -> None:
    assert retain_until_ms((text,), 5) == 5 + days * DAY_MS


PARTS = st.tuples(*(st.none() | st.integers(1, 9999) for _ in "YMD")).filter(any)


@given(PARTS)
def test_every_duration_that_a_pack_may_hold_can_be_kept(parts: tuple[int | None, ...]) -> None:
    text = "P" + "".join(f"{count}{unit}" for count, unit in zip(parts, "YMD", strict=True) if count is not None)
    (rule,) = pack_of(fit(pack("cn", "CN", [oblige("CN", text)]), PackDocument)).rules
    years, months, days = (count or 0 for count in parts)
    owes = owed(rule.obligations)
    assert owes.retain_ms == retain_until_ms(owes.retention, 0) >= (years * 365 + months * 30 + days) * DAY_MS


@given(st.lists(st.sampled_from(["P6M", "P3Y", "P10D"]), max_size=4), st.integers(0, 2**42))
def test_the_longest_promise_holds(durations: list[str], now_ms: int) -> None:
    each = [retain_until_ms((one,), now_ms) for one in durations]
    assert retain_until_ms(tuple(durations), now_ms) == max(each, default=0)


def test_half_a_character_has_no_canonical_form() -> None:
    with pytest.raises(ValueError, match=r"."):
        canonical_bytes({"a": "\ud800"})


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("\b\t\n\f\r", r"\b\t\n\f\r"),
        ("\x00\x1f\x7f", "\\u0000\\u001f\x7f"),
        ("</script>\u2028", "</script>\u2028"),
        ("é e\u0301", "é e\u0301"),
    ],
    ids=["short escapes", "control", "no needless escapes", "no normalisation"],
)
def test_a_string_has_the_shortest_escapes_and_is_not_normalised(text: str, spelled: str) -> None:
    assert canonical_bytes({"a": text}) == f'{{"a":"{spelled}"}}'.encode()
