"""`tidegate explain` of placement: the terms add up, the cheapest is chosen, and what is known of pools changes it."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.bundles.assemble import Bundle
from orchestrator.cli.law.explain import explain_request
from orchestrator.cli.law.lawbook import read_lawbook
from orchestrator.files.requests import RequestDocument, request_of
from orchestrator.files.typed import fit
from tests.operators.desk import LAW, NOW, NOW_MS, Json, change, copy_of, explain, pool, refused, run, write

GENERAL = {
    "version": 1,
    "edge": "edge-de",
    "tenant": "kontor",
    "labels": "personal=none, grade=general, categories=()",
    "model": "demo",
    "prompt_tokens": 1000,
    "output_tokens": 200,
}
"""A payload that every pool of examples/law may see."""
POOLS = ("cn-river", "de-main", "de-remote", "fr-loire", "sg-harbour", "sg-straits")
CHEAPEST, SECOND = "cn-river", "sg-straits"


@cache
def law() -> Bundle:
    return read_lawbook(LAW, NOW_MS).bundle


def asked(bundle: Bundle | None = None, **more: Any) -> Json:
    """Explain the general request with some fields changed."""
    document = fit({**GENERAL, **more}, RequestDocument)
    return explain_request(bundle or law(), request_of(document), NOW_MS).value


def in_folder(folder: Path, **more: Any) -> Json:
    return asked(read_lawbook(folder, NOW_MS).bundle, **more)


COUNTS = st.integers(0, 40)
SPEED = st.fixed_dictionaries(
    {
        "prefill_ns": st.integers(1, 5_000_000),
        "decode_ns": st.integers(1, 100_000_000),
        "stream_ns": st.integers(0, 10_000_000),
    },
    optional={"fixed_us": COUNTS, "service_us": st.integers(1, 10**8), "spread_ppm": st.integers(0, 2_000_000)},
)
STATE = st.fixed_dictionaries(
    {},
    optional={
        "up": st.booleans(),
        "rtt_ms": st.integers(0, 2_000),
        "mbit_per_s": st.integers(1, 10_000),
        "replicas": st.integers(0, 8),
        "slots": st.integers(1, 64),
        "running": COUNTS,
        "waiting": COUNTS,
        "waiting_max": COUNTS,
        "queued_tokens": st.integers(0, 10**6),
        "kv_tokens": st.integers(1, 10**6),
        "openings": COUNTS,
        "age_ms": st.integers(0, 60_000),
        "unseen": COUNTS,
        "cached_tokens": st.integers(0, 2_000),
        "held_off": st.booleans(),
        "speed": SPEED,
    },
)
STATES = st.dictionaries(st.sampled_from(POOLS), STATE)


@settings(max_examples=60, deadline=None)
@given(states=STATES, prompt=st.integers(1, 6_000), output=st.integers(1, 4_000))
def test_whatever_is_known_the_terms_add_up_and_the_cheapest_is_chosen(
    states: dict[str, Any], prompt: int, output: int
) -> None:
    found = asked(pools=states, prompt_tokens=prompt, output_tokens=output)
    scored = {}
    for one in found["pools"]:
        terms = one["terms"]
        assert (terms is None) is (one["drop"] is not None)
        if terms is None:
            continue
        money = {name: int(amount) for name, amount in terms.items() if name.endswith("_pico")}
        assert {"tokens_pico", "egress_pico", "carbon_pico", "time_pico", "late_pico"} <= money.keys()
        assert money.pop("total_pico") == sum(money.values())
        assert terms["first_us"] == sum(terms[f"{name}_us"] for name in ("rtt", "upload", "queue", "prefill"))
        assert terms["time_us"] == terms["first_us"] + terms["decode_us"]
        assert terms["rtt_measured"] is ("rtt_ms" in states.get(one["pool"], {}))
        scored[one["pool"]] = (one["doubtful"], int(terms["total_pico"]), one["pool"])
    told = found["placement"]
    assert told["dropped"] == {
        drop: sum(1 for one in found["pools"] if one["drop"] == drop)
        for drop in {one["drop"] for one in found["pools"] if one["drop"]}
    }
    ordered = sorted(scored.values())
    assert told["chosen"] == found["chosen"]
    if not ordered:
        assert (told["chosen"], told["runner_up"], found["status"]) == (None, None, 503)
        return
    # Of pools with the same cost, chance may take either: an explanation takes the first.
    assert scored[told["chosen"]][:2] == ordered[0][:2]
    if len(ordered) == 1:
        assert told["runner_up"] is None
    else:
        second = scored[told["runner_up"]["pool"]]
        assert int(told["runner_up"]["gap_pico"]) == second[1] - scored[told["chosen"]][1]
        assert second == min(one for one in ordered if one[2] != told["chosen"])


def test_an_idle_fleet_is_taken_where_nothing_is_said() -> None:
    found = asked()
    assert (found["chosen"], found["placement"]["runner_up"]["pool"]) == (CHEAPEST, SECOND)
    assert found["placement"]["settings"] == "base"
    assert found["placement"]["currency"] == "USD"
    assert found["placement"]["dropped"] == {}
    assert asked(pools={CHEAPEST: {}})["pools"] == found["pools"]


@pytest.mark.parametrize(
    ("state", "drop"),
    [
        ({"up": False}, "down"),
        ({"replicas": 0}, "down"),
        ({"held_off": True}, "breaker_open"),
        ({"running": 8, "waiting": 2, "waiting_max": 2}, "full"),
        ({"openings": 0}, "no_opening"),
        ({"openings": 2, "unseen": 2}, "no_opening"),
    ],
)
def test_a_pool_that_cannot_take_it_now_gives_way_to_the_next(state: dict[str, Any], drop: str) -> None:
    found = asked(pools={CHEAPEST: state})
    assert (pool(found, CHEAPEST)["drop"], found["chosen"]) == (drop, SECOND)
    assert found["placement"]["dropped"] == {drop: 1}


def test_what_almost_drops_a_pool_does_not() -> None:
    for state in ({"running": 8, "waiting": 1, "waiting_max": 2}, {"openings": 1}, {"openings": 3, "unseen": 2}):
        assert pool(asked(pools={CHEAPEST: state}), CHEAPEST)["drop"] is None


def test_no_pool_left_is_503_and_counted() -> None:
    found = asked(pools={name: {"up": False} for name in POOLS})
    assert (found["status"], found["chosen"]) == (503, None)
    assert found["placement"]["dropped"] == {"down": len(POOLS)}


@pytest.mark.parametrize(
    ("state", "term", "more"),
    [
        ({"rtt_ms": 299}, "rtt_us", False),
        ({"rtt_ms": 301}, "rtt_us", True),
        ({"mbit_per_s": 1}, "upload_us", True),
        ({"running": 8, "waiting": 8, "waiting_max": 99}, "queue_us", True),
        ({"queued_tokens": 5000}, "queue_us", True),
        ({"running": 4}, "decode_us", True),
        ({"cached_tokens": 500}, "prefill_us", False),
        ({"speed": {"prefill_ns": 1, "decode_ns": 9_000_000, "stream_ns": 0}}, "prefill_us", False),
        ({"speed": {"prefill_ns": 100_000, "decode_ns": 1, "stream_ns": 0}}, "decode_us", False),
        ({"speed": {"prefill_ns": 100_000, "decode_ns": 1, "stream_ns": 0, "fixed_us": 999}}, "prefill_us", True),
        ({"unseen": 8}, "queue_us", True),
        ({"running": 1, "kv_tokens": 1000, "kv_used_tokens": 900}, "queue_us", True),
    ],
)
def test_what_is_known_of_a_pool_is_in_its_terms(state: dict[str, Any], term: str, more: bool) -> None:
    idle, found = (pool(asked(pools=states), CHEAPEST)["terms"] for states in ({}, {CHEAPEST: state}))
    assert (found[term] > idle[term]) if more else (found[term] < idle[term])


def test_cached_tokens_are_cheaper_and_never_the_whole_prompt() -> None:
    found = asked(pools={CHEAPEST: {"cached_tokens": 600}})
    terms = pool(found, CHEAPEST)["terms"]
    # cn-river: 0.20 per million of input, 0.05 of cached input, 0.40 of output.
    assert terms["cached_tokens"] == 600
    assert int(terms["tokens_pico"]) == 400 * 200_000 + 600 * 50_000 + 200 * 400_000
    assert pool(asked(pools={CHEAPEST: {"cached_tokens": 5000}}), CHEAPEST)["terms"]["cached_tokens"] == 999


def test_unseen_attempts_hold_prompts_like_this_one_unless_the_file_says_more() -> None:
    queue = [
        pool(asked(pools={CHEAPEST: {"unseen": 3, **more}}), CHEAPEST)["terms"]["queue_us"]
        for more in ({}, {"unseen_tokens": 3000}, {"unseen_tokens": 0})
    ]
    assert queue[0] == queue[1] > queue[2]


def test_a_queue_moves_the_choice_once_waiting_costs_more_than_the_price(tmp_path: Path) -> None:
    folder = copy_of(LAW, tmp_path / "law")
    change(folder / "settings.yaml", 'value_of_time_per_second: "0.00001"', 'value_of_time_per_second: "0.001"')
    state = {"rtt_ms": 2}
    idle = in_folder(folder, pools={CHEAPEST: state, SECOND: state})
    full = in_folder(folder, pools={CHEAPEST: {**state, "running": 8, "waiting": 30, "waiting_max": 99}, SECOND: state})
    assert (idle["chosen"], full["chosen"]) == (CHEAPEST, SECOND)


def test_a_limit_on_the_answer_bounds_what_is_expected_and_must_fit_the_context() -> None:
    bound = pool(asked(max_tokens=50), CHEAPEST)["terms"]
    assert bound == pool(asked(output_tokens=50), CHEAPEST)["terms"]
    assert pool(asked(max_tokens=4096), CHEAPEST)["drop"] == "context_too_short"
    assert pool(asked(max_tokens=4095), CHEAPEST)["drop"] is None


def test_an_estimate_that_exceeds_the_context_is_doubtful_and_refuses_nothing() -> None:
    found = asked(prompt_tokens=4097)
    assert all(one["doubtful"] for one in found["pools"])
    assert (found["status"], found["chosen"]) == (200, CHEAPEST)
    assert not any(one["doubtful"] for one in asked(prompt_tokens=4096)["pools"])


def test_a_revision_is_asked_for_by_the_contract_or_by_the_file(tmp_path: Path) -> None:
    folder = copy_of(LAW, tmp_path / "law")
    assert {one["drop"] for one in asked(revision="r2")["pools"]} == {"revision_not_served"}
    fleet = (folder / "fleet.yaml").read_text(encoding="utf-8")
    begin = fleet.index("  - id: de-main\n")
    at = fleet.index("decode_us_per_token: 9000", begin)
    write(folder / "fleet.yaml", f"{fleet[:at]}revision: r2, {fleet[at:]}")
    found = in_folder(folder, revision="r2")
    assert (found["chosen"], found["placement"]["dropped"]) == ("de-main", {"revision_not_served": 5})
    tenant = folder / "tenants" / "kontor.yaml"
    change(tenant, "    models: [demo]\n", "    models: [demo]\n    revisions: {demo: r2}\n")
    assert in_folder(folder)["chosen"] == "de-main"
    assert in_folder(folder, revision="r1")["chosen"] is None


def test_a_model_that_the_tenant_may_not_use_is_404(tmp_path: Path) -> None:
    found = asked(model="another")
    assert found["status"] == 404
    assert {one["drop"] for one in found["pools"]} == {"not_entitled"}
    folder = copy_of(LAW, tmp_path / "law")
    change(folder / "tenants" / "kontor.yaml", "    models: [demo]\n", "    models: [demo, another]\n")
    served = in_folder(folder, model="another")
    assert (served["status"], {one["drop"] for one in served["pools"]}) == (404, {"model_not_served"})


def test_what_no_pool_offers_is_400() -> None:
    found = asked(capabilities=["chat", "vision"])
    assert (found["status"], found["placement"]["dropped"]) == (400, {"capability_not_offered": len(POOLS)})


def test_the_budget_of_the_contract_counts_the_tenants_own_price(tmp_path: Path) -> None:
    folder = copy_of(LAW, tmp_path / "law")
    # The book takes 2.00 per million of input, 1.00 of cached input, 4.00 of output: 0.0028 for this request.
    tenant = folder / "tenants" / "kontor.yaml"
    change(tenant, "    models: [demo]\n", '    models: [demo]\n    service: {budget_per_request: "0.0027"}\n')
    assert in_folder(folder)["placement"]["dropped"] == {"over_budget": len(POOLS)}
    # A hundred cached tokens save 0.0001: now it is just within.
    found = in_folder(folder, pools={"de-main": {"cached_tokens": 100}})
    assert (found["chosen"], found["status"]) == ("de-main", 200)
    change(tenant, '"0.0027"', '"0.0028"')
    assert in_folder(folder)["chosen"] == CHEAPEST


def test_the_tenants_own_promise_takes_the_place_of_the_settings(tmp_path: Path) -> None:
    folder = copy_of(LAW, tmp_path / "law")
    tenant = folder / "tenants" / "kontor.yaml"
    state = {CHEAPEST: {"rtt_ms": 400}, "de-main": {"rtt_ms": 1}}
    assert in_folder(folder, pools=state)["chosen"] == CHEAPEST
    more = '    models: [demo]\n    service: {value_of_time_per_second: "0.9"}\n'
    change(tenant, "    models: [demo]\n", more)
    found = in_folder(folder, pools=state)
    assert found["chosen"] == "de-main"
    terms = pool(found, "de-main")["terms"]
    assert int(terms["time_pico"]) == terms["time_us"] * 900_000_000 // 1000


def test_the_settings_on_trial_decide_where_the_file_asks_for_the_canary(tmp_path: Path) -> None:
    folder = copy_of(LAW, tmp_path / "law")
    text = (folder / "settings.yaml").read_text(encoding="utf-8")
    trial = 'canary: {share_ppm: 1000, change: {value_of_time_per_second: "0.9"}}\n'
    write(folder / "settings.yaml", text + trial)
    state = {CHEAPEST: {"rtt_ms": 400}, "de-main": {"rtt_ms": 1}}
    base, tried = (in_folder(folder, pools=state, canary=canary) for canary in (False, True))
    assert (base["placement"]["settings"], base["chosen"]) == ("base", CHEAPEST)
    assert (tried["placement"]["settings"], tried["chosen"]) == ("canary", "de-main")
    # Without a canary in the settings there is nothing to try.
    assert asked(canary=True)["placement"]["settings"] == "base"


def test_without_settings_nothing_is_placed(tmp_path: Path) -> None:
    folder = copy_of(LAW, tmp_path / "law")
    (folder / "settings.yaml").unlink()
    found = in_folder(folder)
    assert (found["placement"], found["status"]) == (None, 200)
    assert not any(one["doubtful"] or one["terms"] for one in found["pools"])


WHOLE = """\
version: 1
edge: edge-de
tenant: kontor
labels: 'personal=none, grade=general, categories=()'
model: demo
pools:
  cn-river: {up: true}
"""


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        ("no-such-pool: {up: true}", "pools.no-such-pool: expected a pool of the bundle's fleet; it has cn-river"),
        ("No_Pool: {up: true}", "r.yaml:7: pools.No_Pool: expected a name of lower-case letters"),
        ("cn-river: {up: maybe}", "r.yaml:7: pools.cn-river.up: expected true or false"),
        ("cn-river: {rtt_ms: -1}", "r.yaml:7: pools.cn-river.rtt_ms: expected"),
        ("cn-river: {rtt: 1}", "r.yaml:7: pools.cn-river.rtt: expected one of the fields up, rtt_ms"),
        ("cn-river: {slots: 0}", "r.yaml:7: pools.cn-river.slots: expected"),
        ("cn-river: {mbit_per_s: 0}", "r.yaml:7: pools.cn-river.mbit_per_s: expected"),
        ("cn-river: {speed: {prefill_ns: 1}}", "r.yaml:7: pools.cn-river.speed.decode_ns: expected this field"),
        ("cn-river: {unseen: 3, own_in_flight: 2}", "pools.cn-river.own_in_flight: expected at least as many"),
        ("cn-river: {unseen_tokens: 3}", "r.yaml:7: pools.cn-river.unseen_tokens: expected unseen attempts"),
        ("cn-river: {kv_used_tokens: 3}", "r.yaml:7: pools.cn-river.kv_used_tokens: expected kv_tokens"),
        ("cn-river: 1", "r.yaml:7: pools.cn-river: expected a mapping"),
    ],
)
def test_a_state_that_makes_no_sense_names_its_field(tmp_path: Path, state: str, sentence: str) -> None:
    file = change(write(tmp_path / "r.yaml", WHOLE), "cn-river: {up: true}", state)
    assert sentence in refused("explain", "--request", file, "--bundle", LAW, "--at", NOW)


@pytest.mark.parametrize(
    ("field", "sentence"),
    [
        ("max_tokens: 0", "max_tokens: expected"),
        ("revision: ../x", "revision: expected a revision: letters, digits"),
        ("canary: 1", "canary: expected true or false"),
    ],
)
def test_a_request_field_that_makes_no_sense_is_named(tmp_path: Path, field: str, sentence: str) -> None:
    file = change(write(tmp_path / "r.yaml", WHOLE), "model: demo", field)
    assert f"r.yaml:5: {sentence}" in refused("explain", "--request", file, "--bundle", LAW, "--at", NOW)


def test_the_text_shows_every_candidate_the_chosen_first_and_the_gap(tmp_path: Path) -> None:
    file = change(write(tmp_path / "r.yaml", WHOLE), "cn-river: {up: true}", "fr-loire: {held_off: true}")
    ran = run("explain", "--request", file, "--bundle", LAW, "--at", NOW)
    found = explain(file, LAW)
    table = ran.out[ran.out.index("J in millionths of a USD, by the base settings") :]
    costs, times = (part.splitlines() for part in table.split("expected times in ms"))
    rows = [line.split()[0] for line in costs if line.split() and line.split()[0] in POOLS]
    assert rows[0] == found["chosen"]
    assert rows[-1] == "fr-loire"
    assert set(rows) == set(POOLS)
    assert "breaker open" in next(line for line in costs if "fr-loire" in line)
    assert "chosen" in next(line for line in costs if found["chosen"] in line)
    totals = [float(line.split()[1].replace(",", "")) for line in costs if line.split()[:1] != ["fr-loire"]
              and line.split() and line.split()[0] in POOLS]  # fmt: skip
    assert totals == sorted(totals)
    assert not any("fr-loire" in line for line in times)
    gap = int(found["placement"]["runner_up"]["gap_pico"])
    assert f"runner-up {SECOND} costs {gap / 1e12:.10f}".rstrip("0") in ran.out


def test_the_text_says_which_law_refuses_a_candidate(tmp_path: Path) -> None:
    asked_for = "version: 1\nedge: edge-sg\ntenant: merlion\nlabels: 'personal=personal, categories=(account)'\n"
    ran = run("explain", "--request", write(tmp_path / "r.yaml", asked_for), "--bundle", LAW, "--at", NOW)
    assert "not permitted: SG-D-26" in ran.out
