"""How long answers and prompts are, learned by tenant, model and script, within what a text can be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.placement.lengths import (
    CHARS_PER_TOKEN_MIN,
    KEYS_MAX,
    OUTPUT_TOKENS_MAX,
    TEMPLATE_TOKENS_MAX,
    Lengths,
    Script,
    script_of,
)
from orchestrator.policy.ids import ModelId, TenantId

ACME, OTHER = TenantId("acme"), TenantId("other")
MODEL, LARGE = ModelId("m"), ModelId("large")


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("", Script.ASCII),
        ("Tell me a story.", Script.ASCII),
        ("A café is a café, and that is all of it.", Script.ASCII),
        ("讲一个关于边境的故事。", Script.CJK),
        ("用 Python 写一个对列表排序的函数。", Script.CJK),
        ("日本語のテキストです", Script.CJK),
        ("한국어로 답해 주세요", Script.CJK),
        ("Расскажи мне историю.", Script.OTHER),
        ("قل لي قصة", Script.OTHER),
        ("Żółta łódź płynęła wzdłuż źródła.", Script.OTHER),
    ],
)
def test_the_script_is_that_of_most_of_the_text(text: str, script: Script) -> None:
    assert script_of(text) is script


@given(st.text(st.characters(max_codepoint=0x10FFFF)))
def test_every_text_has_a_script(text: str) -> None:
    assert isinstance(script_of(text), Script)


def test_before_any_answer_the_settings_say_how_long_it_is() -> None:
    lengths = Lengths()
    assert lengths.output_tokens(ACME, MODEL, 128, None) == 128
    assert lengths.output_tokens(ACME, MODEL, 128, 16) == 16
    assert lengths.output_tokens(ACME, MODEL, 128, 0) == 1


def test_answers_are_learned_by_tenant_and_model() -> None:
    lengths = Lengths()
    for tokens in (100, 200, 300):
        lengths.learn_output(ACME, MODEL, tokens)
    assert lengths.output_tokens(ACME, MODEL, 128, None) == 200
    assert lengths.output_tokens(ACME, MODEL, 128, 50) == 50
    assert lengths.output_tokens(ACME, LARGE, 128, None) == 128
    assert lengths.output_tokens(OTHER, MODEL, 128, None) == 128


def test_old_answers_fade() -> None:
    lengths = Lengths()
    for tokens in [1_000] * 100 + [50] * 100:
        lengths.learn_output(ACME, MODEL, tokens)
    assert lengths.output_tokens(ACME, MODEL, 128, None) == pytest.approx(50, rel=0.15)


def test_four_characters_make_a_token_until_a_pool_has_counted() -> None:
    assert Lengths().prompt_tokens(MODEL, Script.ASCII, 400) == 101
    assert Lengths().prompt_tokens(MODEL, Script.ASCII, 0) == 1


def test_prompts_are_learned_by_model_and_script() -> None:
    lengths = Lengths()
    for chars in (1_000, 3_000, 8_000):
        lengths.learn_prompt(MODEL, Script.CJK, chars, chars)
    assert lengths.prompt_tokens(MODEL, Script.CJK, 500) == 501
    assert lengths.prompt_tokens(MODEL, Script.ASCII, 500) == 126
    assert lengths.prompt_tokens(LARGE, Script.CJK, 500) == 126


def test_short_prompts_that_are_template_mostly_do_not_stretch_long_ones() -> None:
    lengths = Lengths()
    for _ in range(200):
        lengths.learn_prompt(MODEL, Script.ASCII, 20, 5 + 25)
        lengths.learn_prompt(MODEL, Script.ASCII, 40_000, 10_000 + 25)
    assert lengths.prompt_tokens(MODEL, Script.ASCII, 40_000) == pytest.approx(10_000, rel=0.1)


def test_the_word_of_one_pool_does_not_stretch_prompts_beyond_what_a_text_can_be() -> None:
    lengths = Lengths()
    lengths.learn_prompt(MODEL, Script.ASCII, 10, 1 << 60)
    assert lengths.prompt_tokens(MODEL, Script.ASCII, 1_000) <= 1 + 1_000 / CHARS_PER_TOKEN_MIN
    for _ in range(100):
        lengths.learn_prompt(MODEL, Script.ASCII, 4_000, 1_000)
    lengths.learn_prompt(MODEL, Script.ASCII, 10, 1 << 60)
    assert lengths.prompt_tokens(MODEL, Script.ASCII, 4_000) <= 1_000 + TEMPLATE_TOKENS_MAX
    lengths.learn_output(ACME, MODEL, 1 << 60)
    assert lengths.output_tokens(ACME, MODEL, 128, None) == OUTPUT_TOKENS_MAX


@given(st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 10**20)), max_size=30), st.integers(0, 10**9))
def test_an_estimate_is_at_least_one_and_grows_with_the_text(counted: list[tuple[int, int]], chars: int) -> None:
    lengths = Lengths()
    for text, tokens in counted:
        lengths.learn_prompt(MODEL, Script.OTHER, text, tokens)
    short, long = (lengths.prompt_tokens(MODEL, Script.OTHER, some) for some in (chars, chars + 1_000))
    assert 1 <= short <= long <= 1 + (chars + 1_000) / CHARS_PER_TOKEN_MIN


def test_of_too_many_tenants_the_one_learned_longest_ago_is_forgotten() -> None:
    lengths = Lengths()
    for number in range(KEYS_MAX):
        lengths.learn_output(TenantId(f"t-{number}"), MODEL, 7)
    lengths.learn_output(TenantId("t-0"), MODEL, 7)
    lengths.learn_output(TenantId("one-more"), MODEL, 7)
    found = [lengths.output_tokens(TenantId(name), MODEL, 128, None) for name in ("t-0", "t-1", "t-2", "one-more")]
    assert found == [7, 128, 7, 7]
