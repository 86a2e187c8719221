"""`tidegate replay`: a trace through the live placement code, two settings compared, as JSON, text and a page."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from random import Random
from statistics import mean
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from orchestrator.cli.amounts import data, micros, milliseconds, signed, significant
from orchestrator.cli.replay.figures import FIGURES, figures_of
from orchestrator.cli.replay.page import to_html
from orchestrator.cli.replay.plots import Bar, Group, Series, bar_plot, line_plot
from orchestrator.files.traces import trace_head, trace_line
from tests.operators.desk import ROOT, TWO_SIDES, Json, change, copy_of, refused, run, write

EXAMPLE = ROOT / "examples" / "replay"
TRACE, FLEET = EXAMPLE / "trace.jsonl", EXAMPLE / "fleet.yaml"
A, B = EXAMPLE / "settings-a.yaml", EXAMPLE / "settings-b.yaml"
SHORT = ("--limit", 60, "--seeds", 2)


def replay(*words: object, trace: Path = TRACE, fleet: Path = FLEET, settings: Path = A) -> Json:
    ran = run("replay", "--trace", trace, "--fleet", fleet, "--settings", settings, *words, "--json")
    assert ran.status == 0, ran.err
    return ran.json()


def tree_of(text: str) -> ElementTree.Element:
    """Parse a page, or a part of one, that we made ourselves: it is written to be XML too."""
    return ElementTree.fromstring(text)  # noqa: S314 - our own text


@pytest.fixture(scope="module")
def compared() -> Json:
    """The first hundred requests of the example, twice as fast, under both settings."""
    return replay("--against", B, "--limit", 100, "--seeds", 3, "--speed", 2)


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    """A copy of the fleet that a test may change."""
    return copy_of(EXAMPLE, tmp_path / "replay") / "fleet.yaml"


def test_every_request_is_accounted_for_in_every_run(compared: Json) -> None:
    for side in (compared["a"], compared["b"]):
        assert len(side["seeds"]) == compared["seed_count"] == 3
        for one in side["seeds"]:
            assert one["finished"] + one["unfinished"] + one["refused"] == one["requests"] == compared["requests"]
            assert sum(one["refusals"].values()) == one["refused"]
            assert one["residency_violations"] == 0
            assert one["slo_kept"] <= one["finished"]
            assert int(one["cost_pico"]) > 0
            assert one["cached_tokens"] < one["prompt_tokens"]


def test_figures_are_means_over_seeds_and_the_difference_is_b_minus_a(compared: Json) -> None:
    for name, told in compared["difference"].items():
        a, b = compared["a"]["figures"][name], compared["b"]["figures"][name]
        assert told["mean"] == pytest.approx(b["mean"] - a["mean"], abs=1e-9)
        for spread in (a, b, told):
            assert spread["low"] <= spread["mean"] <= spread["high"]
    costs = [int(one["cost_pico"]) / 1e12 for one in compared["a"]["seeds"]]
    assert compared["a"]["figures"]["cost"]["mean"] == pytest.approx(mean(costs))
    assert {figure.name for figure in FIGURES} == compared["difference"].keys()


def test_curves_are_whole_and_rise(compared: Json) -> None:
    for side in (compared["a"], compared["b"]):
        for name in ("first_token_ms", "end_to_end_ms"):
            curve = side["curves"][name]
            assert len(curve) == 101
            assert curve == sorted(curve)
        over = side["curves"]["over_time"]
        assert sum(one["arrived"] for one in over) == 100


def test_the_same_words_give_the_same_answer() -> None:
    assert replay("--against", B, *SHORT) == replay("--against", B, *SHORT)


def test_settings_against_themselves_differ_in_nothing() -> None:
    found = replay("--against", A, *SHORT)
    assert found["a"]["seeds"] == found["b"]["seeds"]
    assert all(spread == {"mean": 0, "low": 0, "high": 0} for spread in found["difference"].values())


def test_another_first_seed_draws_other_weather() -> None:
    first, second = (replay("--limit", 60, "--seeds", 1, "--seed", seed)["a"]["seeds"] for seed in (1, 50))
    assert first != second


def test_one_setting_alone_has_no_difference() -> None:
    found = replay(*SHORT)
    assert "b" not in found
    assert "difference" not in found
    assert found["a"]["bundle"] is None


def test_what_is_worth_more_is_waited_less_for(compared: Json) -> None:
    a, b = compared["a"]["figures"], compared["b"]["figures"]
    assert b["first_token_ms_p90"]["mean"] < a["first_token_ms_p90"]["mean"]
    assert b["cost"]["mean"] > a["cost"]["mean"]


def test_a_class_goes_nowhere_but_where_it_may(fleet: Path) -> None:
    text = fleet.read_text(encoding="utf-8")
    classes = "classes:\n  - {id: personal, may: [eu-frankfurt]}\noutages: []\n"
    write(fleet, text[: text.index("classes:\n")] + classes)
    # Of the four edges, Tokyo reaches no pool in Germany.
    found = replay(*SHORT, fleet=fleet)
    for one in found["a"]["seeds"]:
        assert one["by_pool"].keys() <= {"eu-frankfurt"}
        assert one["refusals"]["not_reachable"] > 0


def test_what_the_law_refuses_everywhere_is_counted_by_rule(fleet: Path) -> None:
    text = fleet.read_text(encoding="utf-8")
    classes = "classes:\n  - {id: open, may: [all]}\n  - {id: shut}\n"
    write(fleet, text[: text.index("classes:\n")] + classes)
    for one in replay(*SHORT, fleet=fleet)["a"]["seeds"]:
        assert one["refusals"]["not_permitted"] == one["refusals_by_rule"]["fleet:shut"] > 10


def test_an_outage_is_seen_and_a_price_change_paid(fleet: Path) -> None:
    quiet = replay(*SHORT)
    text = fleet.read_text(encoding="utf-8")
    begin = text.index("outages:\n")
    gone = "outages:\n  - {pool: cn-guizhou, from_s: 0, until_s: 1000}\n"
    change_ = 'price_changes:\n  - {pool: us-virginia, at_s: 0, input_per_million: "9", '
    write(fleet, text[:begin] + gone + change_ + 'cached_per_million: "9", output_per_million: "9"}\n')
    found = replay(*SHORT, fleet=fleet)
    for before, after in zip(quiet["a"]["seeds"], found["a"]["seeds"], strict=True):
        assert before["by_pool"]["cn-guizhou"] > after["by_pool"].get("cn-guizhou", 0)
        assert before["by_pool"]["us-virginia"] > after["by_pool"].get("us-virginia", 0)


def test_the_packs_of_a_bundle_decide_instead_of_the_file(fleet: Path) -> None:
    found = replay("--bundle", TWO_SIDES, *SHORT, fleet=fleet)
    assert str(found["a"]["bundle"]).startswith("sha256:")
    assert all(one["residency_violations"] == 0 for one in found["a"]["seeds"])
    change(fleet, "labels: 'personal=personal, grade=general, origin=\"DE\"'", "labels: 'personal=unknown'")
    unknown = replay("--bundle", TWO_SIDES, *SHORT, fleet=fleet)
    for one in unknown["a"]["seeds"]:
        assert one["refusals"]["not_permitted"] == one["refusals_by_rule"]["TG-UNKNOWN-LABEL"] > 0


def test_another_law_for_b_alone(tmp_path: Path) -> None:
    closed = copy_of(TWO_SIDES, tmp_path / "closed")
    for pack in (closed / "domestic" / "packs").iterdir():
        pack.unlink()
    found = replay("--bundle", TWO_SIDES, "--against-bundle", closed, *SHORT)
    assert found["a"]["settings"] == found["b"]["settings"]
    for one in found["a"]["seeds"]:
        assert any(pool.startswith("cn-") for pool in one["by_pool"])
    for one in found["b"]["seeds"]:
        assert not any(pool.startswith("cn-") for pool in one["by_pool"])


def test_one_bundle_for_both_is_one_bundle() -> None:
    found = replay("--bundle", TWO_SIDES, "--against", B, "--limit", 5, "--seeds", 1)
    assert found["a"]["bundle"] == found["b"]["bundle"]


@pytest.mark.parametrize(
    "text",
    [
        "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "2023-11-16 18:17:03.9799600,480,10\n" * 30,
        '{"timestamp":0,"input_length":695,"output_length":52,"hash_ids":[46,47]}\n' * 30,
    ],
    ids=["azure", "mooncake"],
)
def test_public_traces_run_on_the_same_fleet(tmp_path: Path, text: str) -> None:
    found = replay("--seeds", 1, trace=write(tmp_path / "trace", text))
    assert found["requests"] == 30
    assert found["a"]["seeds"][0]["finished"] > 0


def test_the_text_names_both_sides_and_says_which_is_better(compared: Json) -> None:
    words = ("replay", "--trace", TRACE, "--fleet", FLEET, "--settings", A, "--against", B)
    ran = run(*words, "--limit", 100, "--seeds", 3, "--speed", 2)
    assert ran.status == 0
    text = " ".join(ran.out.split())
    for part in (f"A: settings {A}", f"B: settings {B}", "first token p90, ms", "cost, USD", "95 % interval"):
        assert " ".join(part.split()) in text
    for part in ("requests by pool", "bytes over borders by class", "cn-guizhou"):
        assert part in text
    verdicts = {figure.verdict(compared["difference"][figure.name]) for figure in FIGURES}
    assert ("better" in text) is ("better" in verdicts)
    assert "One seed has no interval" not in text
    alone = run(*words, "--limit", 20, "--seeds", 1).out
    assert "One seed has no interval" in " ".join(alone.split())


def test_the_page_is_whole_and_needs_nothing_else(compared: Json, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    replay("--against", B, *SHORT, "--html", file)
    text = file.read_text(encoding="utf-8")
    root = tree_of(text)
    tags = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert not tags & {"script", "link", "img", "iframe", "object", "image", "use", "a"}
    assert not any(name in ("src", "href") or name.startswith("on") for one in root.iter() for name in one.attrib)
    assert set(re.findall(r"https?://[^\s\"<]+", text)) == {"http://www.w3.org/2000/svg"}
    assert "prefers-color-scheme:dark" in text
    assert "default-src 'none'" in text
    captions = [element.text or "" for element in root.iter() if element.tag == "figcaption"]
    for part in ("Time to first token", "Time to last token", "Requests by their arrival", "Requests by pool"):
        assert any(caption.startswith(part) for caption in captions)
    assert {"Cost / million tokens, USD", "Cost, USD"} <= set(captions)
    cells = [element.text for element in root.iter("td")]
    for figure in figures_of(compared["a"]):
        assert any(str(cell).startswith(figure.title) for cell in cells)


def test_names_cannot_break_out_of_the_page(tmp_path: Path, fleet: Path) -> None:
    odd = tmp_path / "<script>alert(1)</script>&'\".yaml".replace("/", "_")
    odd.write_bytes(A.read_bytes())
    file = tmp_path / "page.html"
    replay(*SHORT, "--html", file, settings=odd)
    text = file.read_text(encoding="utf-8")
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    tree_of(text)


def test_a_run_in_which_nothing_finishes_still_has_a_page(fleet: Path, tmp_path: Path) -> None:
    text = fleet.read_text(encoding="utf-8")
    write(fleet, text[: text.index("classes:\n")] + "classes:\n  - {id: shut}\n")
    file = tmp_path / "page.html"
    found = replay(*SHORT, "--html", file, fleet=fleet)
    assert found["a"]["curves"]["first_token_ms"] == []
    assert found["a"]["figures"]["refused"]["mean"] == 60
    assert "Nothing to show." in file.read_text(encoding="utf-8")


def test_a_figure_that_is_new_is_shown_under_its_name(compared: Json) -> None:
    spread = {"mean": 3.0, "low": 3.0, "high": 3.0}
    told = {**compared, "difference": {**compared["difference"], "new_one": spread}}
    for side in ("a", "b"):
        told[side] = {**compared[side], "figures": {**compared[side]["figures"], "new_one": spread}}
    assert "<td>new one</td>" in to_html(told)


BAD: list[tuple[dict[str, Any], tuple[object, ...], str]] = [
    ({"trace": "missing"}, (), "missing: No such file or directory"),
    ({"trace": FLEET}, (), "fleet.yaml:1: expected one JSON object a line"),
    ({"fleet": "missing"}, (), "missing: expected a readable file"),
    ({"fleet": A}, (), "settings-a.yaml:5: value_of_time_per_second: expected one of the fields version, currency"),
    ({"settings": FLEET}, (), "fleet.yaml:8: start: expected one of the fields version, currency"),
    ({}, ("--against", "missing"), "missing: expected a readable file"),
    ({}, ("--bundle", "missing"), "missing: No such file or directory"),
    ({}, ("--bundle", ROOT / "examples" / "law"), "tenant: expected a tenant of the bundle, which has kontor, merlion"),
    ({}, ("--html", "missing/page.html"), "--html: missing/page.html: expected a file in a folder that exists"),
]  # fmt: skip


@pytest.mark.parametrize(("files", "words", "sentence"), BAD)
def test_what_cannot_be_replayed_is_one_sentence(
    files: dict[str, Any], words: tuple[object, ...], sentence: str
) -> None:
    given = {"trace": TRACE, "fleet": FLEET, "settings": A, **files}
    options = [part for name, path in given.items() for part in (f"--{name}", path)]
    assert sentence in refused("replay", *options, "--limit", 5, "--seeds", 1, *words)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('"edge":"nowhere"', "trace: expected an edge of the fleet file: edge-singapore, edge-frankfurt"),
        ('"class":"nothing"', "trace: expected a class of the fleet file: general, personal, batch"),
    ],
)
def test_a_trace_of_another_fleet_is_one_sentence(tmp_path: Path, line: str, sentence: str) -> None:
    head = trace_head().decode()
    trace = write(tmp_path / "t.jsonl", head + f'{{"at_ms":1,"prompt_tokens":1,"output_tokens":1,{line}}}\n')
    assert refused("replay", "--trace", trace, "--fleet", FLEET, "--settings", A).startswith(sentence)


def test_settings_in_another_currency_are_refused(tmp_path: Path) -> None:
    text = A.read_text(encoding="utf-8").replace("currency: USD", "currency: EUR")
    told = refused("replay", "--trace", TRACE, "--fleet", FLEET, "--settings", write(tmp_path / "s.yaml", text))
    assert told == "settings: expected the currency of the fleet, USD"


def test_the_trace_of_the_example_is_what_its_script_makes() -> None:
    spec = importlib.util.spec_from_file_location("make_trace", EXAMPLE / "make_trace.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    lines = made.lines(Random(made.SEED))
    assert len(lines) == made.REQUESTS == 300
    assert trace_head() + b"".join(map(trace_line, lines)) == TRACE.read_bytes()


NUMBERS = st.floats(0, 1e15, allow_nan=False)
COORDINATE = re.compile(r'[ "](-?\d+\.\d+),(-?\d+\.\d+)')


@given(points=st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=20), log=st.booleans())
@example(points=[(0.0, 5e-324)], log=False)
def test_every_point_of_a_line_lies_within_its_plot(points: list[tuple[float, float]], log: bool) -> None:
    text = line_plot("title", "x", "y", [Series("a", "a", sorted(points))], log_x=log)
    root = tree_of(text)
    (line,) = (one for one in root.iter() if one.tag.endswith("polyline"))
    for pair in line.attrib["points"].split():
        x, y = map(float, pair.split(","))
        assert 63.9 <= x <= 624.1
        assert 27.9 <= y <= 256.1


@given(values=st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=8))
def test_every_bar_begins_at_nothing_and_ends_within_its_plot(values: list[tuple[float, float]]) -> None:
    groups = [Group(f"pool {number}", (Bar("a", value, "text", value - more, value + more),))
              for number, (value, more) in enumerate(values)]  # fmt: skip
    root = tree_of(bar_plot("title", groups, [("A", "a")]))
    for one in root.iter():
        if one.tag.endswith("rect"):
            assert float(one.attrib["x"]) == 150
            assert 0 <= float(one.attrib["width"]) <= 360.1


def test_an_interval_below_nothing_is_cut_there() -> None:
    text = bar_plot("title", [Group("a", (Bar("a", 1.0, "1", -5.0, 7.0),))])
    assert "M150.0 " in text
    assert bar_plot("title", []).startswith("<figure>")


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"), (1, "1"), (1234.56, "1,235"), (12.3456, "12.35"), (0.00012347, "0.0001235"), (-0.5, "-0.5"),
        (999.96, "1,000"), (1e-20, "0"), (-1e-20, "0"),
    ],
)  # fmt: skip
def test_numbers_keep_what_counts(number: float, text: str) -> None:
    assert significant(number) == text


def test_amounts_carry_their_unit() -> None:
    assert (data(999), data(1_500), data(2.5e9)) == ("999 B", "1.5 kB", "2.5 GB")
    assert (micros(1_234_567_890), micros(-1), micros(0)) == ("1,234.57", "0.00", "0.00")
    assert (milliseconds(1_500), milliseconds(99_949), milliseconds(1_234_567)) == ("1.5", "99.9", "1,235")
    assert (signed("1"), signed("-1"), signed("0")) == ("+1", "-1", "0")


def test_a_verdict_needs_the_whole_interval_on_one_side() -> None:
    cost = next(figure for figure in FIGURES if figure.name == "cost")
    kept = next(figure for figure in FIGURES if figure.name == "slo_attainment")
    moved = next(figure for figure in FIGURES if figure.name == "cross_border_bytes")
    less, more = {"mean": -2, "low": -3, "high": -1}, {"mean": 2, "low": 1, "high": 3}
    assert (cost.verdict(less), cost.verdict(more)) == ("better", "worse")
    assert (kept.verdict(less), kept.verdict(more)) == ("worse", "better")
    assert cost.verdict({"mean": 1, "low": -1, "high": 3}) == ""
    assert cost.verdict({"mean": 2, "low": 2, "high": 2}) == "", "one seed"
    assert moved.verdict(less) == "", "neither way is better"
