"""A recorded trace says what arrived and what became of it, is read back by the replay, and holds no payload."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_agent.border.decider import Decided, Decider
from node_agent.border.gate import Gate
from node_agent.border.traced import refused_line
from node_agent.uplink.recorder import Recorder
from orchestrator.files.label_header import parse_label_header, write_label_header
from orchestrator.files.traces import read_recorded, read_trace
from orchestrator.policy.labels import Clean, Domestic, Grade, Labels, Personal
from orchestrator.policy.vocabulary import UNKNOWN, Asset, Category, Purpose
from orchestrator.wire.catalogue import ProblemError
from tests.border.edge import GERMAN, SECRET_WORDS, Edge, breaks
from tests.values import replace

CODES = st.sampled_from(["DE", "FR", "CN", "SG"])


def recording(edge: Edge, folder: Path, bytes_max: int = 1 << 20) -> Edge:
    hands = replace(edge.gate._hands, note=Recorder(folder / "trace.jsonl", bytes_max).write)
    edge.gate = Gate(edge.name, hands)
    return edge


def files_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("trace.jsonl*"))


async def test_an_answer_and_a_refusal_are_both_recorded_and_read_back(
    make_edge: Callable[..., Edge], tmp_path: Path
) -> None:
    edge = recording(make_edge(), tmp_path)
    await edge.text(edge.asked("acme-sg"))
    with pytest.raises(ProblemError):
        await edge.text(edge.asked("acme-sg", GERMAN))
    answered, refused = read_recorded(tmp_path / "trace.jsonl")
    assert (answered.outcome, answered.pool, answered.prompt_tokens, answered.output_tokens) == (
        "complete", "cn-guizhou", 10, 1,
    )  # fmt: skip
    assert (refused.outcome, refused.pool, refused.traffic) == ("residency_blocked", None, "regulated")
    assert refused.labels == write_label_header(GERMAN)
    rows = read_trace(tmp_path / "trace.jsonl", Random(1).random)
    assert [row.tenant for row in rows] == ["acme-sg", "acme-sg"]
    assert rows[0].at_us == 0


async def test_a_cut_answer_is_recorded_with_what_cut_it(make_edge: Callable[..., Edge], tmp_path: Path) -> None:
    edge = recording(make_edge(cn_guizhou=breaks("engine_failed")), tmp_path)
    with pytest.raises(ProblemError):
        await edge.text(replace(edge.asked("acme-sg"), resumes=False))
    (line,) = read_recorded(tmp_path / "trace.jsonl")
    assert line.outcome == "engine_failed"


async def test_no_word_of_a_payload_is_in_it(make_edge: Callable[..., Edge], tmp_path: Path) -> None:
    edge = recording(make_edge(), tmp_path)
    await edge.text(edge.asked("acme-sg"))
    written = (tmp_path / "trace.jsonl").read_text()
    assert "acme-sg" in written
    for word in SECRET_WORDS.split():
        assert f"{word} " not in written
    assert SECRET_WORDS not in written


async def test_it_grows_to_its_bound_and_keeps_the_file_before(make_edge: Callable[..., Edge], tmp_path: Path) -> None:
    edge = recording(make_edge(), tmp_path, bytes_max=1_500)
    for _ in range(8):
        await edge.text(edge.asked("acme-sg"))
    files = files_of(tmp_path)
    assert [path.name for path in files] == ["trace.jsonl", "trace.jsonl.1"]
    for path in files:
        assert len(path.read_bytes()) <= 1_500
        assert read_recorded(path)


async def test_a_disk_that_takes_nothing_costs_no_request(make_edge: Callable[..., Edge], tmp_path: Path) -> None:
    edge = recording(make_edge(), tmp_path)
    (tmp_path / "trace.jsonl").mkdir()
    assert (await edge.text(edge.asked("acme-sg")))[0] == "cn-guizhou"


@pytest.mark.parametrize(("grade", "kept"), [(Grade.GENERAL, (5, 7)), (Grade.IMPORTANT, ())])
async def test_hashes_of_regulated_payloads_stay_and_the_file_is_private(
    make_edge: Callable[..., Edge], tmp_path: Path, grade: Grade, kept: tuple[int, ...]
) -> None:
    edge = make_edge()
    seen: list[Decided] = []
    decider = edge.gate._attempts._decider
    decider.decide = lambda *args: seen.append(Decider.decide(decider, *args)) or seen[-1]  # type: ignore[method-assign, func-returns-value]
    with suppress(ProblemError):
        await edge.text(edge.asked("acme-sg", Labels(grade=grade)))
    decided = replace(seen[0], blocks=(5, 7))
    recorder = Recorder(tmp_path / "trace.jsonl", 1 << 20)
    recorder.write(refused_line(edge.asked("acme-sg"), decided, "no_feasible_pool"))
    (line,) = read_recorded(tmp_path / "trace.jsonl")
    assert line.blocks == kept
    assert (line.session is None) == (not kept)
    assert files_of(tmp_path)[0].stat().st_mode & 0o077 == 0


@given(
    st.builds(
        Labels,
        personal=st.none() | st.sampled_from(Personal),
        grade=st.none() | st.sampled_from(Grade),
        domestic=st.none() | st.sampled_from(Domestic),
        origin=st.frozensets(CODES),
        clean=st.none() | st.sampled_from(Clean),
        categories=st.none() | st.frozensets(st.sampled_from([one.value for one in Category])),
        located=st.none() | st.frozensets(CODES, min_size=1) | st.just(frozenset({UNKNOWN})),
        collected=st.none() | st.frozensets(CODES, min_size=1),
        purpose=st.none() | st.frozensets(st.sampled_from([one.value for one in Purpose]), min_size=1),
        asset=st.none() | st.frozensets(st.sampled_from([one.value for one in Asset]), min_size=1),
    )
)
def test_a_header_that_is_written_is_read_back(labels: Labels) -> None:
    assert parse_label_header(write_label_header(labels)) == labels
