"""The input manifest names everything that went in, holds none of it, and proves only what it states."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.evidence.canonical import commit
from orchestrator.evidence.inputs import (
    ATTEMPT_NAMESPACE,
    MANIFEST_PREFIX,
    InputManifest,
    InputPart,
    agrees,
    manifest_of,
    states,
)
from orchestrator.policy.ids import AttemptId, KeyId, digest_of
from orchestrator.policy.jurisdictions import Jurisdiction
from orchestrator.policy.labels import Domestic, Effective
from tests.values import replace

ATTEMPT = AttemptId("att_" + "a" * 32)
KEY, KEY_ID = b"k" * 32, KeyId("commit")
SG, CN, UNKNOWN = (Jurisdiction(code) for code in ("SG", "CN", "unknown"))
LABEL = Effective(domestic=Domestic.NO, origin=frozenset({SG}), collected=frozenset({SG}))
CANARY = "the words of the tenant"
TEXTS = (("system", "Be brief."), ("user", CANARY), ("assistant", "Yes?"), ("user", "Grüße"))

texts_of_requests = st.lists(
    st.tuples(st.sampled_from(["system", "user", "assistant"]), st.text(max_size=8)), max_size=6
).map(tuple)


def made(texts: tuple[tuple[str, str], ...] = TEXTS, label: Effective = LABEL) -> InputManifest:
    return manifest_of(ATTEMPT, texts, label, KEY, KEY_ID)


def test_a_manifest_names_every_input_by_kind_with_count_size_and_commitment() -> None:
    manifest = made()
    assert manifest.parts == (
        InputPart("system", 1, 9, commit(KEY, KEY_ID, (b"Be brief.",))),
        InputPart("user", 2, len(CANARY) + 7, commit(KEY, KEY_ID, (CANARY.encode(), "Grüße".encode()))),
        InputPart("assistant", 1, 4, commit(KEY, KEY_ID, (b"Yes?",))),
        InputPart("tools", 0, 0, None),
    )
    assert (manifest.attempt, manifest.cache_namespace) == (ATTEMPT, ATTEMPT_NAMESPACE)
    assert (manifest.domestic, manifest.origin, manifest.collected) == (Domestic.NO, {SG}, {SG})


def test_a_manifest_holds_no_text() -> None:
    assert CANARY.encode() not in made().to_bytes()
    assert CANARY not in repr(made())


def test_the_bytes_of_a_manifest_are_version_1() -> None:
    assert json.loads(made((("user", "hi"),)).to_bytes()) == {
        "v": 1,
        "attempt": ATTEMPT,
        "parts": [
            {"kind": "user", "count": 1, "size_bytes": 2, "commitment": commit(KEY, KEY_ID, (b"hi",))},
            {"kind": "tools", "count": 0, "size_bytes": 0, "commitment": None},
        ],
        "domestic": "no",
        "origin": ["SG"],
        "collected": ["SG"],
        "cache_namespace": "attempt",
    }
    assert made().digest == digest_of(MANIFEST_PREFIX + made().to_bytes())


CHANGES = {
    "attempt": {"attempt": AttemptId("att_" + "b" * 32)},
    "parts": {"parts": made().parts[:-1]},
    "order": {"parts": made().parts[::-1]},
    "domestic": {"domestic": Domestic.YES},
    "origin": {"origin": frozenset({SG, CN})},
    "collected": {"collected": frozenset[str]()},
    "namespace": {"cache_namespace": "tenant"},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_whatever_a_manifest_says_is_in_its_digest(change: dict[str, object]) -> None:
    assert replace(made(), **change).digest != made().digest  # type: ignore[arg-type]


@given(texts_of_requests)
def test_a_manifest_accounts_for_what_it_was_made_of(texts: tuple[tuple[str, str], ...]) -> None:
    assert agrees(made(texts), texts)


@given(texts_of_requests, st.data())
def test_a_text_more_less_or_longer_is_noticed(texts: tuple[tuple[str, str], ...], data: st.DataObject) -> None:
    manifest = made(texts)
    role = data.draw(st.sampled_from(["system", "user", "assistant", "tool", "tools"]))
    assert not agrees(manifest, (*texts, (role, "")))
    if texts:
        at = data.draw(st.integers(0, len(texts) - 1))
        assert not agrees(manifest, texts[:at] + texts[at + 1 :])
        told, text = texts[at]
        assert not agrees(manifest, (*texts[:at], (told, text + "x"), *texts[at + 1 :]))
        other = "assistant" if told == "user" else "user"
        assert not agrees(manifest, (*texts[:at], (other, text), *texts[at + 1 :]))


@pytest.mark.parametrize(
    "part",
    [
        InputPart("user", 7, 700, None),
        InputPart("user", 2, len(CANARY) + 7, None),
        InputPart("tool", 1, 0, None),
        InputPart("tools", 0, 9, None),
    ],
    ids=["of the same kind", "the same twice", "of another kind", "bytes of nothing"],
)
def test_a_part_that_did_not_arrive_is_noticed_wherever_it_stands(part: InputPart) -> None:
    parts = made().parts
    for at in range(len(parts) + 1):
        assert not agrees(replace(made(), parts=(*parts[:at], part, *parts[at:])), TEXTS)


def test_parts_in_another_order_account_for_the_same() -> None:
    assert agrees(replace(made(), parts=made().parts[::-1]), TEXTS)


@given(
    st.sampled_from(Domestic),
    st.frozensets(st.sampled_from([SG, CN, UNKNOWN])),
    st.frozensets(st.sampled_from([SG, CN, UNKNOWN])),
)
def test_a_manifest_proves_that_nothing_of_a_country_went_in_only_by_saying_so(
    domestic: Domestic, origin: frozenset[Jurisdiction], collected: frozenset[Jurisdiction]
) -> None:
    manifest = made(label=replace(LABEL, domestic=domestic, origin=origin, collected=collected))
    worst = {CN, UNKNOWN}
    expected = domestic is Domestic.NO and not worst & origin and not worst & collected
    assert manifest.proves_none("CN") is expected


@pytest.mark.parametrize(
    "other",
    [
        replace(LABEL, domestic=Domestic.YES),
        replace(LABEL, origin=frozenset({SG, CN})),
        replace(LABEL, collected=frozenset({CN})),
        Effective(),
    ],
    ids=["domestic", "origin", "collected", "unknown"],
)
def test_a_manifest_that_says_another_thing_than_the_label_is_noticed(other: Effective) -> None:
    assert states(made(), LABEL)
    assert not states(made(), other)
