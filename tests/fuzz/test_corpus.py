"""Every input of the corpus, and inputs near them, against every reader. The fuzzer itself is `make fuzz`."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
SIZE_BYTES_MAX = 1 << 20


def inputs(target: str) -> list[Path]:
    return sorted(path for path in (CORPUS / target).iterdir() if path.is_file())


@pytest.mark.parametrize("target", TARGETS)
def test_the_corpus_holds(target: str) -> None:
    found = inputs(target)
    assert len(found) > 3
    for path in found:
        TARGETS[target](path.read_bytes())


def test_the_corpus_has_a_folder_for_each_target_and_is_small() -> None:
    assert {path.name for path in CORPUS.iterdir()} == TARGETS.keys()
    assert sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()) < SIZE_BYTES_MAX


@st.composite
def near(draw: st.DrawFn, target: str) -> bytes:
    """An input of the corpus with some bytes taken out, put in or changed."""
    data = draw(st.sampled_from([path.read_bytes() for path in inputs(target)]))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(st.binary(max_size=4)) + data[at + draw(st.integers(0, 4)) :]
    return data


@pytest.mark.parametrize("target", TARGETS)
def test_inputs_near_the_corpus_hold(target: str) -> None:
    @settings(max_examples=60)
    @given(near(target) | st.binary(max_size=100))
    def holds(data: bytes) -> None:
        TARGETS[target](data)

    holds()
