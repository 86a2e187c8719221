"""Sites, GPUs, links and prices out of public data; what is not in them is assumed, and says so where it stands.

The model that is served is one of the class of Llama 3.1 8B in 16 bits: 8.03e9 weights, 128 KiB of keys and values per
token (32 layers x 8 heads x 128 x 2 x 2 bytes).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from random import Random

from benchmarks.placement.traces import DATA
from orchestrator.ledger.money import PICO_PER_UNIT, Currency
from orchestrator.ledger.rating import TokenPrice
from orchestrator.placement.fleet import Carbon
from orchestrator.placement.replay.world import Gpu, Link

USD = Currency("USD")
WEIGHTS_BYTES = 16_060_000_000
KV_BYTES_PER_TOKEN = 131_072
MEMORY_USED = 0.9
"""Share of a GPU's memory that an engine takes (vLLM's default)."""
STREAM_TOKENS = 2_048
"""Context of a typical stream, whose keys and values each of its tokens reads: assumed."""
HOST_US = 3_000
"""Of each step, besides memory: assumed. On A100-40GB it gives 13.3 ms a token, or 75 tokens/s for a stream alone,
which is what johnmusgrave.com measured of Llama 3.1 8B (vLLM 0.23, `vllm bench serve`, concurrency 1)."""
BYTES_PER_GB = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Site:
    """A region where edges or pools stand, and its name in each file."""

    name: str
    country: str
    azure: str
    """In azure_region_rtt_ms.csv; empty for mainland China, of which no open matrix of round trips tells."""
    aws: str
    """In aws_transfer_costs.csv; empty where it has none."""
    cn_floor: str
    """In cn_rtt_lower_bounds.csv: as an overseas site, or, for mainland China, as the Chinese one. May be empty."""
    grid: str
    """In gcp_region_carbon_2024.csv, or the province of china_provincial_emissions.json."""
    utc_minutes: int
    price_factor: float
    """Price of a GPU hour against the US: assumed."""


SITES: Mapping[str, Site] = {
    site.name: site
    for site in (
        Site("singapore", "SG", "Southeast Asia", "ap-southeast-1", "Singapore", "asia-southeast1", 480, 1.15),
        Site("frankfurt", "DE", "Germany West Central", "eu-central-1", "Frankfurt", "europe-west3", 60, 1.15),
        Site("virginia", "US", "East US", "us-east-1", "Ashburn (US-E)", "us-east4", -300, 1.0),
        Site("tokyo", "JP", "Japan East", "ap-northeast-1", "Tokyo", "asia-northeast1", 540, 1.2),
        Site("sao-paulo", "BR", "Brazil South", "sa-east-1", "Sao Paulo", "southamerica-east1", -180, 1.5),
        Site("london", "GB", "UK South", "eu-west-2", "London", "europe-west2", 0, 1.15),
        Site("mumbai", "IN", "Central India", "ap-south-1", "Mumbai", "asia-south1", 330, 1.05),
        Site("sydney", "AU", "Australia East", "ap-southeast-2", "Sydney", "australia-southeast1", 660, 1.2),
        # The grid of Doha stands in for that of Dubai.
        Site("dubai", "AE", "UAE North", "me-central-1", "Dubai", "me-central1", 240, 1.2),
        Site("johannesburg", "ZA", "South Africa North", "af-south-1", "Johannesburg", "africa-south1", 120, 1.25),
        Site("oregon", "US", "West US 2", "us-west-2", "San Jose (US-W)", "us-west1", -480, 1.0),
        Site("paris", "FR", "France Central", "eu-west-3", "", "europe-west9", 60, 1.15),
        Site("seoul", "KR", "Korea Central", "ap-northeast-2", "", "asia-northeast3", 540, 1.15),
        Site("toronto", "CA", "Canada Central", "ca-central-1", "", "northamerica-northeast2", -300, 1.05),
        Site("stockholm", "SE", "Sweden Central", "eu-north-1", "", "europe-north2", 60, 1.05),
        Site("hong-kong", "HK", "East Asia", "ap-east-1", "", "asia-east2", 480, 1.2),
        Site("guizhou", "CN", "", "", "Guiyang (Gui'an)", "CN-GZ", 480, 1.0),
        Site("ulanqab", "CN", "", "", "Ulanqab", "CN-NM", 480, 1.0),
        Site("shanghai", "CN", "", "", "Shanghai", "CN-SH", 480, 1.1),
    )
}
EDGES_ALWAYS = ("singapore", "frankfurt", "virginia", "tokyo", "sao-paulo")
EDGES_SOMETIMES = ("london", "mumbai", "sydney", "dubai", "johannesburg")
DOMESTIC = ("guizhou", "ulanqab", "shanghai")
OVERSEAS = tuple(name for name in SITES if name not in DOMESTIC)


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU, from its data sheet, and how fast it takes in prompts of the model."""

    name: str
    memory_bytes: int
    bytes_per_s: int
    """Bandwidth of its memory."""
    prefill_ns: int
    chunk_tokens: int
    """So that a full chunk takes about a tenth of a second: assumed."""
    slots: int
    """Assumed."""
    watts: int
    context_tokens: int
    """Longest prompt that its operator configures: assumed; the model takes 131,072."""
    listed_as: str
    """Its name in gpu_list_prices.csv, or that of the card that stands in for it there."""

    def gpu(self, prefix_cache: bool = True) -> Gpu:
        """Return how one replica computes. Decoding lives on memory: weights once a step, keys and values per token."""
        return Gpu(
            step_ns=WEIGHTS_BYTES * 1_000_000_000 // self.bytes_per_s + HOST_US * 1000,
            stream_ns=STREAM_TOKENS * KV_BYTES_PER_TOKEN * 1_000_000_000 // self.bytes_per_s,
            prefill_ns=self.prefill_ns,
            chunk_tokens=self.chunk_tokens,
            slots=self.slots,
            kv_tokens=(int(self.memory_bytes * MEMORY_USED) - WEIGHTS_BYTES) // KV_BYTES_PER_TOKEN,
            prefix_cache=prefix_cache,
        )


_GB = 1_000_000_000
CARDS: Mapping[str, Card] = {
    card.name: card
    for card in (
        # Prefill: 16.06e9 operations per token at 0.6 of 989e12 (assumed share).
        Card("H100", 80 * _GB, 3_350 * _GB, 27_000, 2_048, 96, 700, 131_072, "H100"),
        # GORGO (arXiv 2602.11688): 0.0938 ms per token, on hardware that it does not name; it is 0.55 of 312e12.
        Card("A100-80GB", 80 * _GB, 2_039 * _GB, 93_800, 1_024, 64, 400, 131_072, "A100-80GB"),
        Card("A100-40GB", 40 * _GB, 1_555 * _GB, 93_800, 1_024, 48, 400, 65_536, "A100-40GB"),
        # 0.45 of 362e12: assumed.
        Card("L40S", 48 * _GB, 864 * _GB, 98_600, 1_024, 48, 350, 65_536, "L40S"),
        # SkyWalker (EuroSys'26): 300 ms for 512 tokens.
        Card("L4", 24 * _GB, 300 * _GB, 586_000, 256, 16, 72, 32_768, "L4"),
        # Sold in China: an H100 with a seventh of its arithmetic, an A100 with slower links, a third of an L40S.
        # 0.6 of 148e12, as A100, 0.45 of 119.5e12: assumed.
        Card("H20", 96 * _GB, 4_000 * _GB, 181_000, 512, 96, 400, 131_072, "A100-80GB"),
        Card("A800", 80 * _GB, 2_039 * _GB, 93_800, 1_024, 64, 400, 131_072, "A100-80GB"),
        Card("L20", 48 * _GB, 864 * _GB, 299_000, 256, 32, 275, 65_536, "L40S"),
    )
}
CARDS_OVERSEAS = ("H100", "A100-80GB", "A100-40GB", "L40S", "L4")
CARDS_HOME = ("H100", "A100-80GB", "A100-40GB", "L40S")
"""Of the first pool of a country: whoever may go nowhere else must not depend on an L4."""
CARDS_DOMESTIC = ("H20", "A800", "L20")

UTILISATION = 0.5
"""Share of the hours paid for in which a GPU works: assumed."""
CACHED_SHARES = (0.1, 0.25, 0.5)
"""Price of a cached prompt token against an uncached one: those of GPT-5, DeepSeek V3 and GPT-4o in the price file."""
TILT = 1.4
"""By how much operators shift price between prompt and answer, at most: assumed."""
JITTER = 0.15
"""And how far they are from cost: assumed."""

SAME_SITE_RTT_US = 1_000
"""Between an edge and a pool of one metropolitan region: assumed; the matrix leaves its diagonal blank."""
MEASURED_JITTER = (0.01, 0.05)
"""Mean jitter against the round trip, on clouds' own backbones: assumed."""
MEASURED_BYTES_PER_S = (12_500_000, 62_500_000)
"""What one session gets there: assumed."""
LEASED_SHARE = 0.65
"""Of the pools in mainland China, those that are reached over leased lines: assumed."""
LEASED_INFLATION = (1.4, 2.2)
"""Round trip against the floor of fibre. Measured from Hong Kong over the clouds' backbones: 1.4 to Singapore, 1.5 and
1.65 to the US, 1.8 to Sao Paulo, 2.1 to Frankfurt; private lines from Shanghai to Tokyo: 1.5."""
PUBLIC_INFLATION = (2.0, 5.0)
"""Of the public Internet: means of RIPE Atlas and WonderNetwork for China, 2025, are two to five times the floor."""
PUBLIC_RTT_MAX_US = 400_000
"""Of these means none is higher than 354 ms."""
LEASED_JITTER_US = (2_000, 8_000)
PUBLIC_JITTER_US = (15_000, 60_000)
LEASED_BYTES_PER_S = (6_250_000, 25_000_000)
PUBLIC_BYTES_PER_S = (1_500_000, 6_250_000)


def measured_rtt_us(source: Site, target: Site) -> int | None:
    """Return the median round trip that Microsoft measured between two regions, or None where it has none."""
    table = _rtt_ms()
    found = table.get((source.azure, target.azure)) or table.get((target.azure, source.azure))
    return None if found is None else found * 1000


def floor_rtt_us(domestic: Site, overseas: Site) -> int:
    """Return the least that a round trip to mainland China takes: light in fibre. Raises KeyError for other pairs."""
    return round(_floors_ms()[(domestic.cn_floor, overseas.cn_floor)] * 1000)


def measured_link(edge: Site, pool: Site, chance: Random) -> Link:
    """Return a link outside mainland China: the round trip as measured, jitter and bandwidth assumed.

    Raises ValueError where nobody measured.
    """
    rtt_us = SAME_SITE_RTT_US if edge.name == pool.name else measured_rtt_us(edge, pool)
    if rtt_us is None:
        raise ValueError(f"no round trip between {edge.name} and {pool.name}")
    jitter_us = int(rtt_us * chance.uniform(*MEASURED_JITTER))
    return Link(rtt_us, jitter_us, chance.randint(*MEASURED_BYTES_PER_S))


def modelled_link(edge: Site, pool: Site, leased: bool, chance: Random) -> Link:
    """Return a link to mainland China: a model, not a measurement. The floor, inflated, with jitter."""
    inflation = chance.uniform(*(LEASED_INFLATION if leased else PUBLIC_INFLATION))
    floor_us = floor_rtt_us(pool, edge)
    rtt_us = max(floor_us, min(int(floor_us * inflation), PUBLIC_RTT_MAX_US))
    jitter_us = chance.randint(*(LEASED_JITTER_US if leased else PUBLIC_JITTER_US))
    return Link(rtt_us, jitter_us, chance.randint(*(LEASED_BYTES_PER_S if leased else PUBLIC_BYTES_PER_S)))


def link_pico_per_byte(edge: Site, pool: Site) -> int:
    """Return what a byte costs between the two, as AWS lists it for a sender in the edge's region.

    Mainland China counts as the Internet. Within one site it costs nothing.
    """
    if edge.name == pool.name:
        return 0
    return _pico_per_byte(_transfer_usd()[(edge.aws, pool.aws or "internet")])


def internet_pico_per_byte(cloud: str, site: Site) -> int:
    """Return what a byte to the Internet costs at a cloud of egress_prices.json, in its first paid tier.

    For mainland China the price of Hong Kong at AWS stands in.
    """
    if not site.aws:
        return _pico_per_byte(_transfer_usd()[("ap-east-1", "internet")])
    with (DATA / "egress_prices.json").open(encoding="utf-8") as file:
        tiers = json.load(file)[cloud]["tiers"]
    return _pico_per_byte(float(tiers[0]["price_per_gb_usd"]))


@dataclass(frozen=True, slots=True)
class Offer:
    """A GPU at a cloud, at its list price."""

    cloud: str
    """In egress_prices.json."""
    card: Card
    usd_per_hour: float


@cache
def offers() -> tuple[Offer, ...]:
    """Return every card of CARDS at every cloud that lists it; those sold in China at `domestic_factor` of it."""
    listed: list[tuple[str, str, float]] = []
    with (DATA / "gpu_list_prices.csv").open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            usd = float(line["on_demand_usd_h"]) / int(line["count"])
            listed.append((line["source"].removesuffix("-list"), line["accelerator"], usd))
    found: list[Offer] = []
    for card in CARDS.values():
        factor = domestic_factor() if card.name in CARDS_DOMESTIC else 1.0
        found += [Offer(cloud, card, usd * factor) for cloud, name, usd in listed if name == card.listed_as]
    return tuple(found)


@cache
def domestic_factor() -> float:
    """Return what a token costs in China against the US: DeepSeek R1 at DeepSeek against Bedrock, 0.41."""
    with (DATA / "token_prices_2026-09.json").open(encoding="utf-8") as file:
        models = {model["model_id"]: model["providers"] for model in json.load(file)["models"]}
    by = {provider["provider"]: provider for provider in models["deepseek-r1"]}
    shares = [by["deepseek"][kind] / by["bedrock"][kind] for kind in ("input_per_1m_usd", "output_per_1m_usd")]
    return float(sum(shares) / len(shares))


def token_price(offer: Offer, site: Site, chance: Random) -> TokenPrice:
    """Return what a token costs at an offer in a site: GPU time at list price, as its operator tilts it."""
    gpu = offer.card.gpu()
    pico_per_ns = offer.usd_per_hour * site.price_factor * PICO_PER_UNIT / 3600 / 1e9 / UTILISATION
    tilt = TILT ** chance.uniform(-1, 1)
    input_pico = gpu.prefill_ns * pico_per_ns * tilt * chance.uniform(1 - JITTER, 1 + JITTER)
    decode_ns = gpu.stream_ns + gpu.step_ns / gpu.slots
    output_pico = decode_ns * pico_per_ns / tilt * chance.uniform(1 - JITTER, 1 + JITTER)
    cached_pico = input_pico * chance.choice(CACHED_SHARES)
    return TokenPrice(USD, int(input_pico), int(cached_pico), int(output_pico))


def carbon(card: Card, site: Site) -> Carbon:
    """Return what a token emits: the card's power for as long as the token takes, on the grid of the site."""
    gpu = card.gpu()
    decode_ns = gpu.stream_ns + gpu.step_ns // gpu.slots
    return Carbon(_grid_grams()[site.grid], card.watts * gpu.prefill_ns // 1000, card.watts * decode_ns // 1000)


def _pico_per_byte(usd_per_gb: float) -> int:
    return round(usd_per_gb * PICO_PER_UNIT / BYTES_PER_GB)


@cache
def _rtt_ms() -> dict[tuple[str, str], int]:
    found: dict[tuple[str, str], int] = {}
    with (DATA / "azure_region_rtt_ms.csv").open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            source = line.pop("Source")
            found |= {(source, target): int(ms) for target, ms in line.items() if ms}
    return found


@cache
def _floors_ms() -> dict[tuple[str, str], float]:
    with (DATA / "cn_rtt_lower_bounds.csv").open(encoding="utf-8", newline="") as file:
        lines = csv.DictReader(file)
        return {(line["cn_site"], line["overseas_site"]): float(line["rtt_floor_fibre_ms"]) for line in lines}


@cache
def _transfer_usd() -> dict[tuple[str, str], float]:
    with (DATA / "aws_transfer_costs.csv").open(encoding="utf-8", newline="") as file:
        return {(line["src"], line["dst"]): float(line["cost"]) for line in csv.DictReader(file)}


@cache
def _grid_grams() -> dict[str, int]:
    found: dict[str, int] = {}
    with (DATA / "gcp_region_carbon_2024.csv").open(encoding="utf-8", newline="") as file:
        for line in csv.reader(file):
            if line[0] != "Google Cloud Region":
                found[line[0]] = round(float(line[3]))
    with (DATA / "china_provincial_emissions.json").open(encoding="utf-8") as file:
        provinces = json.load(file)["data"]
    return found | {code: round(province["emission_factor"]) for code, province in provinces.items()}
