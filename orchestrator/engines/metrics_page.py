"""How busy an engine says it is: its Prometheus page, read for the few gauges that placement needs.

Where the names come from: `vllm/v1/metrics/loggers.py` and `vllm/v1/engine/core_client.py` of vLLM,
`python/sglang/srt/observability/metrics_collector.py` of SGLang, `tools/server/` of llama.cpp.

A page is somebody else's text. What cannot be read for sure is unknown, never zero: a page without both counts gives
nothing at all, and a cache figure that makes no sense is left out. Only the lines with our names reach the parser, so
that a page costs little and a strange label elsewhere on it does no harm.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from orchestrator.engines.generation import Failed
from orchestrator.engines.openai import OpenAIEngine

PAGE_CHARACTERS_MAX = 1_048_576
"""The longest page that is read; `OpenAIEngine.fetch` ends a longer reply too. A page of vLLM has some 100,000."""
LINE_CHARACTERS_MAX = 8_192
"""The longest line with one of our names; vLLM's line about its cache has some 2,000."""
LINES_CHARACTERS_MAX = 131_072
"""All lines with one of our names together: those of some fifty ranks of vLLM."""
REQUESTS_MAX = 1_000_000
"""The most requests that are believed, running or waiting."""
TOKENS_MAX = 10**12
"""The most tokens of cache that are believed."""

_PPM = 1_000_000
# Some engines round a full cache to a little more than full. Much more than full is another unit.
_FULL_MAX = 1.01
_COUNT = re.compile(r"[0-9]{1,13}")
_VLLM_CACHE = "vllm:cache_config_info"
_SGLANG_TOKENS = "sglang:max_total_num_tokens"

_Labels = frozenset[tuple[str, str]]
_Series = dict[_Labels, float]


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """What one page said of its engine: the sum over the models and data-parallel ranks behind it."""

    running: int
    """Requests in the batch."""
    waiting: int
    """Requests that the engine has accepted and not begun."""
    kv_used_ppm: int | None
    """Used part of the cache of keys and values, 1,000,000 when full, the mean over the ranks; None when not told.

    With vLLM and SGLang it is what running requests hold; a prefix that may be evicted counts as free.
    """
    kv_tokens: int | None
    """Tokens whose keys and values fit; None when not told. llama.cpp never tells."""
    family: str
    """Whose page it is: `vllm`, `sglang` or `llamacpp`."""


@dataclass(frozen=True, slots=True)
class _Family:
    """The names that one kind of engine uses."""

    name: str
    running: str
    waiting: str
    used: tuple[str, ...]
    """The used part of the cache, 0 to 1; the first that is on the page counts."""


_FAMILIES = (
    # `gpu_cache_usage_perc` is the older name, hidden since 2025 (vllm #24245).
    _Family(
        "vllm",
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
    ),
    _Family("sglang", "sglang:num_running_reqs", "sglang:num_queue_reqs", ("sglang:token_usage",)),
    # `kv_cache_usage_ratio` is gone since 2025 (llama.cpp #13660).
    _Family(
        "llamacpp", "llamacpp:requests_processing", "llamacpp:requests_deferred", ("llamacpp:kv_cache_usage_ratio",)
    ),
)
_NAMES = (
    *(name for family in _FAMILIES for name in (family.running, family.waiting, *family.used)),
    _VLLM_CACHE,
    _SGLANG_TOKENS,
)
_LINE = re.compile(rf"^(?:{'|'.join(_NAMES)})[ \t{{][^\n]*", re.MULTILINE)
# Every scheduler of one SGLang engine tells the same counts when it tells any (`--enable-metrics-for-all-schedulers`,
# and always with context parallelism, sglang #31896), so these ranks are copies. `dp_rank` is another engine.
_SGLANG_COPIES = frozenset({"tp_rank", "pp_rank", "moe_ep_rank", "priority"})


async def scrape(engine: OpenAIEngine, deadline_ms: int) -> EngineLoad | None:
    """Asks the engine how busy it is, for at most `deadline_ms`. None when it does not say. Raises nothing.

    The page is beside `/v1`, under the engine's base URL. The key goes with it when the settings have one, as with
    every other call.
    """
    page = await engine.fetch("/metrics", deadline_ms=deadline_ms)
    if isinstance(page, Failed):
        return None
    try:
        text = page.decode()
    except UnicodeDecodeError:
        return None
    return parse_load(text)


def parse_load(text: str) -> EngineLoad | None:
    """Reads a page in the Prometheus text format. None when it does not tell for sure what one engine does."""
    # Every line of this format ends with a line feed, so a page without one at its end was cut.
    if len(text) > PAGE_CHARACTERS_MAX or not text.endswith("\n"):
        return None
    page = _read(text)
    if page is None:
        return None
    told = [family for family in _FAMILIES if family.running in page or family.waiting in page]
    if len(told) != 1:
        return None
    family = told[0]
    if family.name == "sglang":
        page = {name: _without_copies(series) for name, series in page.items()}
    running = _sum_of_counts(page.get(family.running, {}), REQUESTS_MAX)
    waiting = _sum_of_counts(page.get(family.waiting, {}), REQUESTS_MAX)
    if running is None or waiting is None:
        return None
    used = next((page[name] for name in family.used if name in page), {})
    return EngineLoad(running, waiting, _used_ppm(used), _kv_tokens(family, page), family.name)


def _read(text: str) -> dict[str, _Series] | None:
    """Returns the samples with our names, by name and labels. None when one cannot be read or is there twice."""
    lines = [match[0] for match in _LINE.finditer(text)]
    if sum(map(len, lines)) > LINES_CHARACTERS_MAX or any(len(line) > LINE_CHARACTERS_MAX for line in lines):
        return None
    page: dict[str, _Series] = {}
    try:
        for metric in text_string_to_metric_families("\n".join(lines)):
            for sample in metric.samples:
                series = page.setdefault(sample.name, {})
                labels = frozenset(sample.labels.items())
                if labels in series:
                    return None
                series[labels] = sample.value
    except (ValueError, LookupError, ArithmeticError):
        # Beside its own ValueError the parser lets through what its indexing and divisions raise.
        return None
    return page


def _without_copies(series: _Series) -> _Series:
    """Returns one sample for each engine: of what its schedulers tell, the highest."""
    engines: _Series = {}
    for labels, value in series.items():
        if dict(labels).get("priority"):
            # A part of the sample without a priority, which is the whole.
            continue
        engine = frozenset(label for label in labels if label[0] not in _SGLANG_COPIES)
        before = engines.get(engine, value)
        # Written so that NaN stays, whichever comes first.
        engines[engine] = before if before >= value or before != before else value
    return engines


def _sum_of_counts(series: _Series, most: int) -> int | None:
    """Returns the sum, None when there is none or one value is no count."""
    values = series.values()
    # Compared before they are converted: a value may be NaN, infinite, or an integer of any length.
    if not values or not all(0 <= value <= most and value == int(value) for value in values):
        return None
    total = sum(int(value) for value in values)
    return total if total <= most else None


def _used_ppm(series: _Series) -> int | None:
    """Returns the mean; the ranks of one engine have caches of one size."""
    values = list(series.values())
    if not values or not all(0 <= value <= _FULL_MAX for value in values):
        return None
    return min(_PPM, round(sum(values) / len(values) * _PPM))


def _kv_tokens(family: _Family, page: Mapping[str, _Series]) -> int | None:
    """Returns how many tokens fit, over all ranks."""
    told: int | None = None
    if family.name == "vllm":
        told = _vllm_tokens(page.get(_VLLM_CACHE, {}))
    elif family.name == "sglang":
        told = _sum_of_counts(page.get(_SGLANG_TOKENS, {}), TOKENS_MAX)
    return told if told is not None and 0 < told <= TOKENS_MAX else None


def _vllm_tokens(series: _Series) -> int | None:
    """Reads the labels of vLLM's cache, one sample for each data-parallel rank.

    `kv_cache_size_tokens` is that of one rank, so the ranks are added. Older versions lack it: there it is blocks times
    the size of a block, and every rank names the blocks of all. Where layers differ in their blocks, that product is
    too high (vllm #51163), so it is the second choice.
    """
    labels = [dict(one) for one in series]
    sizes = [_count(one.get("kv_cache_size_tokens")) for one in labels]
    told = [size for size in sizes if size is not None]
    if told and len(told) == len(sizes):
        return sum(told)
    products: list[int] = []
    for one in labels:
        blocks, size = _count(one.get("num_gpu_blocks")), _count(one.get("block_size"))
        if blocks is None or size is None:
            return None
        products.append(blocks * size)
    return max(products, default=None)


def _count(text: str | None) -> int | None:
    """Returns a label as a number; it is `None` in words while vLLM does not know it yet."""
    return int(text) if text is not None and _COUNT.fullmatch(text) else None
