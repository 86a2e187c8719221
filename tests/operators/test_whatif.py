"""`tidegate whatif`: one thing changes, the live code places again, and every move is told with its reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.operators.desk import LAW, NOW, NOW_MS, Json, change, copy_of, explain, refused, remove_rule, run, write
from tests.operators.recorded import record_of
from tests.operators.test_bundle_export import Program

GENERAL = """\
version: 1
edge: edge-de
tenant: kontor
labels: 'personal=none, grade=general, categories=()'
model: demo
prompt_tokens: 1000
output_tokens: 200
"""
CHEAPEST, SECOND, THIRD = "cn-river", "sg-straits", "de-remote"


@pytest.fixture
def general(tmp_path: Path) -> Path:
    """A request that every pool of examples/law may see."""
    return write(tmp_path / "general.yaml", GENERAL)


def whatif(*words: object) -> Json:
    ran = run("whatif", *words, "--json")
    assert ran.status == 0, ran.err
    return ran.json()


def of_law(request: Path, *words: object, bundle: Path = LAW) -> tuple[Json, Json]:
    """Return (the one request, the summary)."""
    found = whatif("--bundle", bundle, "--request", request, "--at", NOW, *words)
    (one,) = found["requests"]
    return one, found["summary"]


def ends(one: Json) -> tuple[str | None, str | None]:
    return one["before"]["pool"], one["after"]["pool"]


def test_before_is_what_explain_says(general: Path) -> None:
    one, _ = of_law(general, "--outage", THIRD)
    told = explain(general, LAW)
    terms = next(pool["terms"] for pool in told["pools"] if pool["pool"] == told["chosen"])
    assert one["before"] == {
        "pool": told["chosen"],
        "status": 200,
        "total_pico": terms["total_pico"],
        "spend_pico": str(int(terms["tokens_pico"]) + int(terms["egress_pico"])),
        "runner_up": told["placement"]["runner_up"]["pool"],
        "gap_pico": told["placement"]["runner_up"]["gap_pico"],
    }


def test_after_is_what_explain_says_of_the_changed_folder(general: Path, tmp_path: Path) -> None:
    folder = copy_of(LAW, tmp_path / "law")
    old = 'pool: cn-river, model: demo, currency: USD, input_per_million: "0.20", cached_per_million: "0.05", '
    new = old.replace("0.20", "3.00").replace("0.05", "1.00")
    change(folder / "prices.yaml", old + 'output_per_million: "0.40"', new + 'output_per_million: "4.00"')
    told = explain(general, folder)
    one, summary = of_law(general, "--price", f"{CHEAPEST}=3.00,1.00,4.00")
    assert ends(one) == (CHEAPEST, told["chosen"]) == (CHEAPEST, SECOND)
    assert one["after"]["gap_pico"] == told["placement"]["runner_up"]["gap_pico"]
    assert one["why"].startswith(f"{SECOND} costs ")
    # 1,000 tokens in and 200 out: 0.60 and 1.20 per million instead of 0.20 and 0.40 and 144,000 of egress.
    before, after = (int(one[end]["spend_pico"]) for end in ("before", "after"))
    assert (before - 144_000, after) == (280_000_000, 840_000_000)
    assert int(summary["cost"]["difference_pico"]) == after - before


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--outage", CHEAPEST), f"{CHEAPEST} is down"),
        (("--drain", CHEAPEST), f"{CHEAPEST} is drained"),
        (("--without", CHEAPEST), f"{CHEAPEST} is not declared"),
    ],
)
def test_a_pool_that_is_gone_gives_way_to_the_next(general: Path, words: tuple[str, str], why: str) -> None:
    one, summary = of_law(general, *words)
    assert (ends(one), one["why"], one["moved"]) == ((CHEAPEST, SECOND), why, True)
    assert summary["moves"] == [{"from": CHEAPEST, "to": SECOND, "count": 1}]
    assert (summary["same"], summary["newly_refused"], summary["newly_allowed"]) == (0, 0, 0)


def test_a_pool_that_was_not_chosen_may_go(general: Path) -> None:
    one, summary = of_law(general, "--without", SECOND)
    assert (ends(one), one["why"]) == ((CHEAPEST, CHEAPEST), "stays, at the same cost")
    assert (one["before"]["runner_up"], one["after"]["runner_up"]) == (SECOND, THIRD)
    assert (summary["same"], summary["moves"]) == (1, [])
    assert summary["j"]["difference_pico"] == "0"


def test_a_round_trip_costs_what_it_is_worth(general: Path) -> None:
    # 0.00001 per second, and 300 ms are taken where nothing was measured: ten seconds more cost 0.000097 and lateness.
    one, _ = of_law(general, "--rtt", f"{CHEAPEST}=2300")
    assert ends(one) == (CHEAPEST, CHEAPEST)
    assert int(one["after"]["total_pico"]) - int(one["before"]["total_pico"]) >= 2_000 * 10_000
    assert one["why"].startswith("stays, and costs ")
    far, _ = of_law(general, "--rtt", f"{CHEAPEST}=1000000")
    assert ends(far) == (CHEAPEST, SECOND)


def test_a_price_of_one_model_alone(general: Path) -> None:
    moved, _ = of_law(general, "--price", f"{CHEAPEST}/demo=9,9,9")
    assert ends(moved) == (CHEAPEST, SECOND)


def test_other_settings_drain_and_weigh(general: Path, tmp_path: Path) -> None:
    text = (LAW / "settings.yaml").read_text(encoding="utf-8")
    file = write(tmp_path / "s.yaml", text.replace("drains: []", f"drains: [{CHEAPEST}, {SECOND}]"))
    one, _ = of_law(general, "--settings", file)
    assert (ends(one), one["why"]) == ((CHEAPEST, THIRD), f"{CHEAPEST} is drained")


def test_another_law_newly_refuses_and_newly_allows(tmp_path: Path) -> None:
    request = write(
        tmp_path / "r.yaml",
        "version: 1\nedge: edge-sg\ntenant: merlion\nlabels: 'personal=personal, categories=(account)'\n",
    )
    looser = copy_of(LAW, tmp_path / "looser")
    remove_rule(looser / "packs" / "sg.yaml", "SG-D-26")
    told = explain(request, LAW)
    stricter = copy_of(LAW, tmp_path / "stricter")
    for pack in (stricter / "packs").iterdir():
        if pack.name.startswith("cn"):
            pack.unlink()
    one, summary = of_law(request, "--law", stricter)
    assert ends(one)[0] == told["chosen"]
    assert one["after"]["pool"] != one["before"]["pool"]
    assert "not permitted by" in one["why"]
    assert "TG-NO-PACK" in one["why"]
    # The other way round: what the stricter law refuses, the shipped one allows.
    back, reverse = of_law(request, "--law", LAW, bundle=stricter)
    assert ends(back) == tuple(reversed(ends(one)))
    refused_counts = [(found["newly_refused"], found["newly_allowed"]) for found in (summary, reverse)]
    assert refused_counts[0] == tuple(reversed(refused_counts[1]))


def test_where_nothing_is_left_it_says_so_with_the_status(general: Path, tmp_path: Path) -> None:
    only = GENERAL + "pools:\n" + "".join(
        f"  {pool}: {{up: false}}\n" for pool in ("de-main", "de-remote", "fr-loire", "sg-harbour", "sg-straits")
    )  # fmt: skip
    one, summary = of_law(write(tmp_path / "only.yaml", only), "--outage", CHEAPEST)
    assert (ends(one), one["after"]["status"]) == ((CHEAPEST, None), 503)
    assert one["why"] == f"{CHEAPEST} is down; no pool is left (6 down)"
    assert (summary["newly_refused"], summary["placed_both"]) == (1, 0)
    assert summary["cost"] == {"before_pico": "0", "after_pico": "0", "difference_pico": "0"}


def test_several_requests_are_summed_up(general: Path, tmp_path: Path) -> None:
    german = write(
        tmp_path / "german.yaml",
        GENERAL.replace("edge-de", "edge-sg").replace("kontor", "merlion"),
    )
    found = whatif(
        "--bundle", LAW, "--request", general, "--request", german, "--request", general, "--at", NOW,
        "--outage", CHEAPEST,
    )  # fmt: skip
    summary = found["summary"]
    assert [one["name"] for one in found["requests"]] == [str(general), str(german), str(general)]
    assert sum(one["count"] for one in summary["moves"]) + summary["same"] == summary["requests"] == 3
    pairs = [(int(one["before"]["total_pico"]), int(one["after"]["total_pico"])) for one in found["requests"]]
    assert int(summary["j"]["difference_pico"]) == sum(after - before for before, after in pairs)


def test_recorded_decisions_are_made_again_with_what_was_known_then(general: Path, tmp_path: Path) -> None:
    record = record_of(LAW, general)
    other = json.loads(record.to_bytes())
    lines = [
        record.to_bytes().decode(),
        json.dumps({**other, "v": 1}),
        json.dumps({**other, "program": "scheduler"}),
        json.dumps({"kind": "usage"}),
        json.dumps({**other, "edge": "edge-gone"}),
    ]
    trace = write(tmp_path / "trace.jsonl", "\n".join(lines) + "\n")
    found = whatif("--bundle", LAW, "--trace", trace, "--outage", CHEAPEST)
    (one,) = found["requests"]
    assert (one["name"], one["source"], one["at_ms"]) == (record.id, "record", NOW_MS)
    assert one["recorded"] == one["before"]["pool"] == record.pool
    assert found["summary"]["differs_from_record"] == 0
    assert found["summary"]["skipped"] == {
        f"not of version {other['v']}": 1,
        "of an edge that the bundle does not have": 1,
    }
    together = whatif("--bundle", LAW, "--trace", trace, "--request", general, "--at", NOW, "--outage", CHEAPEST)
    assert [one["source"] for one in together["requests"]] == ["request", "record"]


def test_a_record_that_this_bundle_decides_otherwise_is_counted(general: Path, tmp_path: Path) -> None:
    trace = write(tmp_path / "trace.jsonl", record_of(LAW, general).to_bytes().decode() + "\n")
    folder = copy_of(LAW, tmp_path / "law")
    change(folder / "settings.yaml", "drains: []", f"drains: [{CHEAPEST}]")
    found = whatif("--bundle", folder, "--trace", trace, "--outage", THIRD)
    (one,) = found["requests"]
    assert found["summary"]["differs_from_record"] == 1
    assert one["recorded"] == CHEAPEST != one["before"]["pool"]


def test_an_edge_is_asked_about_what_its_spool_and_its_bundles_hold(tmp_path: Path) -> None:
    program = Program(tmp_path)
    record = program.record()
    chosen = record["placement"]["chosen"]
    found = whatif("--config", program.config, "--drain", chosen)
    (one,) = found["requests"]
    assert (one["name"], one["before"]["pool"], found["summary"]["differs_from_record"]) == (record["id"], chosen, 0)
    assert one["after"]["pool"] != chosen
    # With a bundle beside it, that one counts.
    exported = whatif("--config", program.config, "--bundle", program.export(), "--drain", chosen)
    assert exported["requests"] == found["requests"]


def test_the_text_says_what_moves_and_why(general: Path) -> None:
    ran = run("whatif", "--bundle", LAW, "--request", general, "--at", NOW, "--outage", CHEAPEST)
    assert ran.status == 0
    assert f"what if --outage {CHEAPEST}" in ran.out
    assert f"{CHEAPEST} -> {SECOND}" in ran.out
    assert f"{CHEAPEST} is down" in ran.out
    assert "1 requests: 0 stay, 0 newly refused, 0 newly allowed" in ran.out


OPTIONS: list[tuple[tuple[object, ...], str]] = [
    ((), "expected exactly one of --price, --outage, --rtt, --drain, --without, --law, --settings"),
    (("--outage", CHEAPEST, "--drain", CHEAPEST), "expected exactly one of --price"),
    (("--outage", CHEAPEST, "--outage", SECOND), "expected exactly one of --price"),
    (("--outage", "nowhere"), "--outage: expected a pool of the bundle's fleet; it has cn-river, de-main"),
    (("--drain", "nowhere"), "--drain: expected a pool of the bundle's fleet"),
    (("--without", ""), "--without: expected a pool of the bundle's fleet"),
    (("--rtt", CHEAPEST), "--rtt: expected POOL=MS"),
    (("--rtt", f"{CHEAPEST}=-1"), "--rtt: expected POOL=MS"),
    (("--rtt", f"{CHEAPEST}=1000001"), "--rtt: expected POOL=MS with at most 1000000"),
    (("--rtt", f"{CHEAPEST}=²"), "--rtt: expected POOL=MS"),
    (("--rtt", "nowhere=1"), "--rtt: expected a pool of the bundle's fleet"),
    (("--price", CHEAPEST), "--price: expected POOL[/MODEL]=INPUT,CACHED,OUTPUT"),
    (("--price", f"{CHEAPEST}=1,2"), "--price: expected POOL[/MODEL]=INPUT,CACHED,OUTPUT"),
    (("--price", f"{CHEAPEST}=1,2,x"), "--price: output: expected a quoted decimal"),
    (("--price", f"{CHEAPEST}=1,0.0000001,1"), "--price: cached: finer than a pico-unit"),
    (("--price", "nowhere=1,1,1"), "--price: expected a pool of the bundle's fleet"),
    (("--price", f"{CHEAPEST}/other=1,1,1"), "--price: expected a pool and a model that the prices name"),
    (("--law", "missing"), "missing: No such file or directory"),
    (("--settings", "missing"), "missing: expected a readable file"),
    (("--settings", LAW / "prices.yaml"), "expected one of the fields version, currency"),
    (("--at", "soon", "--outage", CHEAPEST), "--at: expected a time of ISO 8601"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "sentence"), OPTIONS)
def test_a_change_that_makes_no_sense_is_one_sentence_that_names_its_option(
    general: Path, words: tuple[object, ...], sentence: str
) -> None:
    assert sentence in refused("whatif", "--bundle", LAW, "--request", general, *words)


def test_what_is_asked_about_must_be_there(general: Path, tmp_path: Path) -> None:
    change_ = ("--outage", CHEAPEST)
    assert refused("whatif", *change_).startswith("expected --request FILE or --trace PATH with --bundle PATH")
    assert refused("whatif", "--request", general, *change_).startswith("--bundle: expected the folder or export")
    assert refused("whatif", "--bundle", LAW, *change_).startswith("expected --request FILE or --trace PATH")
    empty = write(tmp_path / "empty.jsonl", "")
    sentence = refused("whatif", "--bundle", LAW, "--trace", empty, *change_)
    assert sentence == "expected a decision that can be made again (none was recorded)"
    assert "expected a readable file" in refused("whatif", "--config", "missing.yaml", *change_)


def test_other_settings_in_another_currency_are_refused(general: Path, tmp_path: Path) -> None:
    text = (LAW / "settings.yaml").read_text(encoding="utf-8").replace("currency: USD", "currency: EUR")
    file = write(tmp_path / "s.yaml", text)
    sentence = refused("whatif", "--bundle", LAW, "--request", general, "--settings", file)
    assert sentence == "--settings: currency: expected USD, as the settings of the bundle have it"


def test_a_bundle_without_settings_places_nothing(general: Path, tmp_path: Path) -> None:
    folder = copy_of(LAW, tmp_path / "law")
    (folder / "settings.yaml").unlink()
    sentence = refused("whatif", "--bundle", folder, "--request", general, "--outage", CHEAPEST)
    assert "expected a bundle with settings.yaml" in sentence


@pytest.mark.parametrize(
    "broken",
    [
        {"facts": None},
        {"asked": {}},
        {"placement": None},
        {"citation": {}},
    ],
)
def test_a_record_that_holds_too_little_is_one_sentence(general: Path, tmp_path: Path, broken: Json) -> None:
    record = {**json.loads(record_of(LAW, general).to_bytes()), **broken}
    trace = write(tmp_path / "trace.jsonl", json.dumps(record) + "\n")
    sentence = refused("whatif", "--bundle", LAW, "--trace", trace, "--outage", CHEAPEST)
    assert "record does not hold what a decision is made again from" in sentence


@pytest.mark.parametrize(("field", "value"), [("prompt_tokens", "many"), ("views", [{"pool": "cn-river"}])])
def test_a_record_whose_fields_are_of_other_types_is_one_sentence(
    general: Path, tmp_path: Path, field: str, value: object
) -> None:
    record = json.loads(record_of(LAW, general).to_bytes())
    record["asked"][field] = value
    trace = write(tmp_path / "trace.jsonl", json.dumps(record) + "\n")
    sentence = refused("whatif", "--bundle", LAW, "--trace", trace, "--outage", CHEAPEST)
    assert sentence.endswith("record does not hold what a decision is made again from")
