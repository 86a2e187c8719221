"""What the path benchmark makes of its samples: ratios, sums of stages, aims, tables, a drawing and a page."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncGenerator
from io import StringIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import pytest
from rich.console import Console

from benchmarks.path.__main__ import main
from benchmarks.path.aims import aims
from benchmarks.path.drawing import Bar, Panel, drawn
from benchmarks.path.report import BEGIN, DRAWING, END, FOLDER, PAGE, panels, told, written
from benchmarks.path.rounds import LOADS, MANY, ONE, STREAM, Sample
from benchmarks.path.rows import Row
from benchmarks.path.staged import Staged, stage_table
from benchmarks.path.stages import EDGE, INTAKE, LAW, MODULES, REST, STAGES, law_us, rows
from benchmarks.path.summary import by_process, figures
from benchmarks.path.systems import DIRECT, GENERAL, PERSONAL
from benchmarks.path.tables import aims_table, duration, main_table, row_text, rows_table, signed
from benchmarks.path.traced import Clock, named, wrapped
from benchmarks.path.wrk import Run

VLLM, SGLANG, LITELLM = "vllm-router", "sglang-router", "litellm"


def sample(system: str, load: str, number: int, per_s: int, p50_us: int, **cpu_us: float) -> Sample:
    """A second of load."""
    run = Run(per_s, 1_000_000, per_s * 100, p50_us, 9 * p50_us, p50_us, p50_us, p50_us, 4 * p50_us)
    return Sample(system, load, number, run, cpu_us)


def samples() -> list[Sample]:
    """Two rounds; in the second one the machine is half as fast, for everybody."""
    found = []
    for number, pace in ((0, 1), (1, 2)):
        for load in LOADS:
            found.append(sample(DIRECT, load.name, number, 10_000 // pace, 50 * pace, engine=200_000.0))
            own = {"edge": 300_000.0, "intake": 200_000.0, "engine": 200_000.0, "control": 9e9, "etcd": 9e9}
            found.append(sample(GENERAL, load.name, number, 2_000 // pace, 500 * pace, **own))
            found.append(sample(VLLM, load.name, number, 4_000 // pace, 300 * pace, router=800_000.0, engine=1.0))
    return found


def result() -> dict[str, Any]:
    """A run as its JSON has it."""
    found = figures(samples())
    stage = Staged(
        LOADS[0],
        {program: rows(program, look(program, 0), look(program, 1), 10) for program in (EDGE, INTAKE)},
        {EDGE: 900.0, INTAKE: 700.0},
        "processor time",
        ("node_agent.front.app:gone",),
    )
    streams = {"edge_peak_mb": 80.0, "first_p99_ms": 1500.0}
    return {
        "seconds": 1, "rounds": 2, "took_s": 90.0, "load_average_1min_at_end": 1.0,
        "machine": {"cores": 2, "processor": "a processor", "kernel": "6", "load_average_1min": 0.5},
        "fdatasync": {"p50_us": 1000.0, "p99_us": 4000.0},
        "titles": {
            DIRECT: "engine, direct", VLLM: "vllm-router", SGLANG: "sglang-router", GENERAL: "Tidegate", PERSONAL: "P",
        },
        "upstream": {GENERAL: "stream: true"},
        "not_measured": {SGLANG: "its environment | could\nnot be made"},
        "given_up": {PERSONAL: {"many": "wrk met errors"}},
        "memory_bytes": {GENERAL: 150_000_000, VLLM: 80_000_000, DIRECT: 0},
        "figures": {name: {key: one.to_json() for key, one in own.items()} for name, own in found.items()},
        "cpu_us_by_process": {load.name: by_process(samples(), load) for load in (MANY, STREAM)},
        "stages": [stage.to_json()],
        "rows": [Row("1,000 streams", GENERAL, streams).to_json(), Row("slow", GENERAL, {}, "gone").to_json()],
    }  # fmt: skip


def look(program: str, turn: int) -> dict[str, object]:
    """What a program's clock says: nothing at first, then ten requests of 2 us in each stage, twice called each."""
    count = len(STAGES[program]) + 1
    return {
        "inner_ns": 100.0, "outer_ns": 50.0, "process_us": 1_000.0 + 9_000.0 * turn,
        "spent_ns": [2_000 * 10 * turn] * count, "calls": [10 * turn] * count, "inner": [10 * turn] * count,
    }  # fmt: skip


def test_ratios_and_differences_are_taken_within_each_round() -> None:
    found = figures(samples())
    own = found[GENERAL]
    assert own["requests_per_s"].value == pytest.approx(1_500)
    assert (own["requests_per_s"].direct, own["requests_per_s"].low) == (pytest.approx(0.2), pytest.approx(1_000))
    assert own["one_p50_us"].added == pytest.approx((450 + 900) / 2)
    assert own["tokens_per_s"].value == pytest.approx(150_000)


def test_the_time_of_a_router_is_without_engine_control_and_etcd() -> None:
    found = figures(samples())
    assert found[GENERAL]["cpu_us_per_request"].low == pytest.approx(500_000 / 2_000)
    assert found[DIRECT]["cpu_us_per_request"].low == pytest.approx(200_000 / 10_000)
    spent = by_process(samples(), MANY)[GENERAL]
    assert set(spent) == {"edge", "intake", "engine", "control", "etcd"}


def test_stages_add_up_to_what_the_process_spent_without_the_clock() -> None:
    for program in (EDGE, INTAKE):
        found = rows(program, look(program, 0), look(program, 1), 10)
        calls = (len(STAGES[program]) + 1) * 10
        assert sum(row.us for row in found) == pytest.approx((9_000 - calls * 0.150) / 10)
        assert found[0].us == pytest.approx(2.0 - 0.150)
        assert found[-1].title == REST
    tables = {program: rows(program, look(program, 0), look(program, 1), 10) for program in (EDGE, INTAKE)}
    law = sum(stage.kind == LAW for stages in STAGES.values() for stage in stages)
    assert law_us(tables) == pytest.approx(1.85 * law)


def test_every_function_of_a_stage_is_there() -> None:
    for module in MODULES.values():
        assert named(f"{module}:run")
    gone = [name for stages in STAGES.values() for stage in stages for name in stage.functions if not named(name)]
    assert gone == [], "benchmarks/path/stages.py names what was renamed or removed"


class Turns:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.at_ns = 0

    def now_ns(self) -> int:
        return self.at_ns

    def work(self, took_ns: int) -> None:
        self.at_ns += took_ns


async def test_a_stage_gets_only_the_time_that_no_other_has_within_it() -> None:
    turns = Turns()
    clock = Clock(2, turns.now_ns)

    def inner() -> int:
        turns.work(30)
        return 7

    timed = wrapped(inner, clock, 1)

    async def outer() -> int:
        turns.work(5)
        found = timed()
        turns.work(5)
        return int(found)

    async def items() -> AsyncGenerator[int, None]:
        for number in range(2):
            turns.work(100)
            yield number

    assert await wrapped(outer, clock, 0)() == 7
    turns.work(1)
    assert [item async for item in wrapped(items, clock, 0)()] == [0, 1]
    clock.enter(1)
    assert clock.spent_ns == [210, 30, 1]
    assert clock.inner[0] == 1


def shown(table: object) -> str:
    """What a table looks like."""
    out = StringIO()
    Console(width=220, file=out).print(table)
    return out.getvalue()


def well_formed(svg: str) -> None:
    """A drawing that a browser takes."""
    Xml.fromstring(svg)  # noqa: S314 - our own


def test_a_system_that_was_not_measured_is_a_row_that_says_why() -> None:
    one = result()
    table = main_table(
        one["titles"], figures(samples()), one["memory_bytes"], one["not_measured"], one["given_up"]
    )
    text = shown(table)
    assert "not measured" in text
    assert "sglang-router" in text
    assert "P, many: wrk met errors" in text
    assert "(x0.200)" in text


def test_aims_are_met_missed_or_not_measured_and_nothing_else() -> None:
    found = {one.text: one.verdict for one in aims(result())}
    assert found["requests/s at 32 connections: vllm-router's"] == "missed"
    assert found["the floor: half of vllm-router's"] == "met"
    assert found["streamed tokens/s above both Rust routers"] == "not measured"
    assert found["added p50 at one connection"] == "met"
    assert found["edge with 1,000 streams read at speed"] == "met"
    assert found["edge, for each slow stream"] == "not measured"
    law = "both permits, placement, evidence: processor time of a request"
    assert found[f"{law}, {ONE.title}"] == "met"
    assert found[f"{law}, {MANY.title}"] == "not measured"
    assert "missed" in shown(aims_table(aims(result())))


def test_the_page_is_written_between_its_marks_and_nowhere_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    paths = written(result(), page)
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"before\n{BEGIN}")
    assert text.endswith(f"{END}\nafter\n")
    assert "old" not in text
    assert told(result()) in text
    assert paths == [page, tmp_path / FOLDER / DRAWING]
    well_formed(paths[1].read_text(encoding="utf-8"))
    page.write_text("no marks", encoding="utf-8")
    with pytest.raises(ValueError, match="marks"):
        written(result(), page)


def test_the_page_tells_reasons_aims_stages_and_rows() -> None:
    text = told(result())
    for part in ("sglang-router was not measured", "load `many`, was given up", "missed", "In all".lower(), "gone"):
        assert part in text
    assert "its environment | could" not in text.split("### Aims")[0].split("* sglang")[0]
    assert PAGE.read_text(encoding="utf-8").count(BEGIN) == 1


def test_a_drawing_shows_every_system_and_says_what_is_missing() -> None:
    text = drawn(panels(result()))
    well_formed(text)
    assert text.count("not measured") >= 3
    well_formed(drawn([Panel("nothing", [Bar("a <b>", None, "not measured", "ours")])]))


def test_the_command_takes_kept_figures_and_refuses_what_cannot_be_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, copy = tmp_path / "kept.json", tmp_path / "copy.json"
    kept.write_text(json.dumps(result()), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["path", "--told", str(kept), "--json", str(copy)])
    assert main() == 0
    assert json.loads(copy.read_text(encoding="utf-8")) == json.loads(kept.read_text(encoding="utf-8"))
    for wrong in (["--systems", GENERAL], ["--systems", f"{DIRECT},other"], ["--parts", "none"], ["--edge", "name"]):
        monkeypatch.setattr(sys, "argv", ["path", *wrong])
        with pytest.raises(SystemExit):
            main()


def test_figures_are_written_for_people() -> None:
    assert (duration(56.4), duration(1_230), duration(250_000)) == ("56 us", "1.23 ms", "0.25 s")
    assert (signed(-1_500), signed(12)) == ("-1.50 ms", "+12 us")
    row = Row("streams", GENERAL, {"first_p99_ms": 12.5, "edge_peak_mb": 81.26, "edge_kib_per_stream": 3.0})
    assert row_text(row) == "first p99 12.50 ms, edge peak 81.3 MB, edge 3.0 KiB a stream"
    assert "gone" in shown(rows_table([Row("slow", GENERAL, {}, "gone")], {}))
    tables = {program: rows(program, look(program, 0), look(program, 1), 10) for program in (EDGE, INTAKE)}
    staged = Staged(LOADS[0], tables, {EDGE: 1.0, INTAKE: 2.0}, "processor time", ())
    assert "permits, placement, evidence" in shown(stage_table(staged))
