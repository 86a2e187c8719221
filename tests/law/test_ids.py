"""Ids say what they are, sort by time, and have one spelling."""

from __future__ import annotations

import base64
import hashlib
import re
import uuid
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.policy.ids import (
    KeyId,
    digest_of,
    format_api_key,
    is_attempt_id,
    is_decision_id,
    is_digest,
    is_name,
    is_request_id,
    is_session_id,
    make_attempt_id,
    make_decision_id,
    make_request_id,
    make_session_id,
    make_usage_id,
    parse_api_key,
)
from orchestrator.policy.jurisdictions import ASSIGNED, EEA, expand, parse_jurisdiction

ENTROPY = st.binary(min_size=10, max_size=10)
TIMES = st.integers(0, 2**48 - 1)
MAKERS: dict[str, Callable[[int, bytes], str]] = {
    "req": make_request_id,
    "dec": make_decision_id,
    "att": make_attempt_id,
    "usg": make_usage_id,
    "ses": make_session_id,
}
CHECKS: dict[str, Callable[[str], object]] = {
    "req": is_request_id,
    "dec": is_decision_id,
    "att": is_attempt_id,
    "ses": is_session_id,
}


def uuid7_hex(now_ms: int, entropy: bytes) -> str:
    return make_request_id(now_ms, entropy).removeprefix("req_")


@settings(max_examples=100, deadline=None)
@given(TIMES, ENTROPY)
def test_a_uuid7_is_well_formed_and_holds_its_time(now_ms: int, entropy: bytes) -> None:
    made = uuid.UUID(hex=uuid7_hex(now_ms, entropy))
    assert made.version == 7
    assert made.variant == uuid.RFC_4122
    assert made.int >> 80 == now_ms
    # The random bits, all but the six at the top, in an order of ours: the last twelve stand behind the version.
    chance = int.from_bytes(entropy, "big")
    assert made.int >> 64 & 0xFFF == chance & 0xFFF
    assert made.int & (1 << 62) - 1 == chance >> 12 & (1 << 62) - 1
    assert made.hex == uuid7_hex(now_ms, entropy)


@settings(max_examples=100, deadline=None)
@given(TIMES, TIMES, ENTROPY, ENTROPY)
def test_ids_sort_by_time(one_ms: int, two_ms: int, one: bytes, two: bytes) -> None:
    if one_ms < two_ms:
        assert make_request_id(one_ms, one) < make_request_id(two_ms, two)


def test_other_chance_makes_another_id() -> None:
    made = {uuid7_hex(0, (1 << bit).to_bytes(10, "big")) for bit in range(74)}
    assert len(made) == 74


@pytest.mark.parametrize(("now_ms", "size"), [(-1, 10), (2**48, 10), (0, 9), (0, 11), (0, 0)])
def test_a_uuid7_refuses_what_does_not_fit(now_ms: int, size: int) -> None:
    with pytest.raises(ValueError):
        uuid7_hex(now_ms, bytes(size))


@pytest.mark.parametrize("prefix", CHECKS)
def test_made_ids_have_their_prefix_and_no_other(prefix: str) -> None:
    made = MAKERS[prefix](1, bytes(10))
    assert [other for other, check in CHECKS.items() if check(made)] == [prefix]
    for wrong in (made + "0", made[:-1], made.upper(), made + "\n", made.replace("_", "-"), "", " " + made):
        assert not CHECKS[prefix](wrong)


def test_a_usage_id_has_the_form_of_the_others() -> None:
    assert re.fullmatch(r"usg_[0-9a-f]{32}", make_usage_id(1, bytes(10)))


@settings(max_examples=100, deadline=None)
@given(st.from_regex(r"[a-z0-9]{6,32}", fullmatch=True), st.binary(min_size=32, max_size=32))
def test_an_api_key_comes_back_as_its_id_and_the_hash_of_its_secret(key_id: str, secret: bytes) -> None:
    text = format_api_key(KeyId(key_id), secret)
    assert parse_api_key(text) == (KeyId(key_id), hashlib.sha256(secret).hexdigest())


SECRET = base64.urlsafe_b64encode(bytes(range(32))).rstrip(b"=").decode("ascii")


def test_the_key_of_the_rejects_is_a_key() -> None:
    assert parse_api_key(f"tg_acme01_{SECRET}") is not None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tg",
        "tg_acme01",
        "tg_acme01_",
        f"sk_acme01_{SECRET}",
        f"TG_acme01_{SECRET}",
        f" tg_acme01_{SECRET}",
        f"tg_acme01_{SECRET} ",
        f"tg_acme01_{SECRET}\n",
        f"tg__{SECRET}",
        f"tg_acme_{SECRET}",
        f"tg_{'a' * 33}_{SECRET}",
        f"tg_Acme01_{SECRET}",
        f"tg_acme-1_{SECRET}",
        f"tg_acme01\n_{SECRET}",
        f"tg_acme01_{SECRET[:-1]}",
        f"tg_acme01_{SECRET}=",
        f"tg_acme01_{SECRET}A",
        f"tg_acme01_{SECRET[:-1]}9",
        f"tg_acme01_{'+' * 42}A",
        f"tg_acme01_{'/' * 42}A",
        f"tg_acme01_{SECRET[:-1]}é",
        f"tg_acme01_{SECRET[:20]} {SECRET[21:]}",
        f"Bearer tg_acme01_{SECRET}",
    ],
)
def test_anything_else_is_no_api_key(text: str) -> None:
    assert parse_api_key(text) is None


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=80))
def test_parsing_a_key_never_raises(text: str) -> None:
    assert parse_api_key("tg_acme01_" + text) is None or len(text) == 43


def test_one_secret_has_one_spelling() -> None:
    secret = bytes(range(32))
    last = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    prefix = SECRET[:-1]
    accepted = [char for char in last if parse_api_key(f"tg_acme01_{prefix}{char}") is not None]
    assert len(accepted) == 16
    hashes = {key[1] for char in accepted if (key := parse_api_key(f"tg_acme01_{prefix}{char}")) is not None}
    assert len(hashes) == 16
    assert hashlib.sha256(secret).hexdigest() in hashes


@pytest.mark.parametrize(("key_id", "secret"), [("short", bytes(32)), ("Acme01", bytes(32)), ("acme01", bytes(31))])
def test_a_key_is_not_made_from_what_does_not_fit(key_id: str, secret: bytes) -> None:
    with pytest.raises(ValueError):
        format_api_key(KeyId(key_id), secret)


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("a", True),
        ("edge-singapore", True),
        ("smollm2-135m.q8", True),
        ("a" * 63, True),
        ("", False),
        ("a" * 64, False),
        ("-a", False),
        ("a-", False),
        (".", False),
        ("..", False),
        ("a/b", False),
        ("A", False),
        ("a_b", False),
        ("a b", False),
        ("a\n", False),
        ("é", False),
    ],
)
def test_names_that_people_may_choose(text: str, good: bool) -> None:
    assert is_name(text) is good


def test_digests_have_one_notation() -> None:
    digest = digest_of(b"abc")
    assert digest == "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert is_digest(digest)
    for wrong in (digest.upper(), digest[:-1], digest + "0", digest + "\n", digest[7:], "md5:" + digest[7:]):
        assert not is_digest(wrong)


def test_the_codes_are_the_assigned_ones() -> None:
    assert len(ASSIGNED) == 249
    assert len(EEA) == 30
    assert EEA <= ASSIGNED
    assert not {"UK", "EL", "EU", "XK", "ZZ"} & ASSIGNED
    assert expand(("EEA", "SG")) == EEA | {parse_jurisdiction("SG")}
    for wrong in ("", "de", "DEU", "EEA", "XX", "DE "):
        with pytest.raises(ValueError):
            parse_jurisdiction(wrong)
