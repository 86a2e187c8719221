"""The scanner of the canary test finds a text in every form in which it could leak: the positive control."""

from __future__ import annotations

from tests.e2e.canary import canary_of, in_any_form, model_tokenizer

REGULATED = "Zylophonquartz-7731-stays-at-home-here"
GENERAL = "Brimstonewaltz-4482-crosses-over-there"


def test_the_scanner_finds_a_canary_in_every_form() -> None:
    tokenizer = model_tokenizer()
    for text in (REGULATED, GENERAL):
        canary = canary_of(text, tokenizer)
        for form, data in in_any_form(text, tokenizer):
            assert canary.within(data), form
        for spelling in canary.spellings:
            assert canary.within(b"before" + spelling + bytes(1 << 16)), "before what a file reserves"
    other = canary_of(GENERAL, tokenizer)
    assert not any(other.within(data) for _, data in in_any_form(REGULATED, tokenizer))
