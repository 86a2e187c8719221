"""Prices: what pools cost the operator, and what tenants pay. Amounts are quoted decimals of currency units."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from orchestrator.files.domain_error import DomainError
from orchestrator.files.fields import (
    CountOrZero,
    Moment,
    TimeOfDay,
    Version,
    Written,
    read_amount,
    read_currency,
    read_minute,
    read_model,
    read_moment_ms,
    read_name,
    refuse_repeats,
)
from orchestrator.files.typed import FieldPath
from orchestrator.ledger.money import TOKENS_PER_PRICE, Currency
from orchestrator.ledger.rating import PriceBook, TokenPrice
from orchestrator.placement.fleet import Carbon, DatedPrice, PoolCost, Prices, Tariff
from orchestrator.placement.prices import NEVER_MS
from orchestrator.policy.ids import EdgeId, ModelId, PoolId

BYTES_PER_PRICE = 1_000_000_000
"""Egress is quoted per GB of 10^9 bytes, so that every price down to nine decimals is whole pico-units per byte."""


class TariffDocument(Written, frozen=True):
    """Other prices for some hours of every day, in UTC: from `from_time` until `until_time`, over midnight too."""

    from_time: TimeOfDay
    until_time: TimeOfDay
    input_per_million: str
    cached_per_million: str
    output_per_million: str


class DatedPriceDocument(Written, frozen=True):
    """Other prices for a while: a spot price, or a change that is announced. Goes before every tariff."""

    from_at: Moment
    input_per_million: str
    cached_per_million: str
    output_per_million: str
    until_at: Moment | UnsetType = UNSET


class CarbonDocument(Written, frozen=True):
    """What a token emits: what the grid of the pool emits, and the energy of a million tokens."""

    grams_per_kwh: CountOrZero
    input_joules_per_million: CountOrZero
    output_joules_per_million: CountOrZero


class ChargeDocument(Written, frozen=True):
    """What a pool charges.

    `egress_links` names the price per GB on the links to single edges; every other link costs `egress_per_gb`.
    """

    input_per_million: str
    cached_per_million: str
    output_per_million: str
    egress_per_gb: str
    tariffs: tuple[TariffDocument, ...] = ()
    dated: tuple[DatedPriceDocument, ...] = ()
    egress_links: dict[str, str] = msgspec.field(default_factory=dict)
    carbon: CarbonDocument | UnsetType = UNSET


class CostDocument(ChargeDocument, frozen=True, kw_only=True):
    """What one pool costs the operator for one model."""

    pool: str
    model: str
    currency: str


class ModelPriceDocument(Written, frozen=True):
    """What tenants pay for one model."""

    model: str
    currency: str
    input_per_million: str
    cached_per_million: str
    output_per_million: str


class PriceBookDocument(Written, frozen=True):
    """A named list of prices, which tenants name in their contract."""

    id: str
    prices: tuple[ModelPriceDocument, ...]


class PricesDocument(Written, frozen=True):
    """The prices of one side."""

    version: Version
    costs: tuple[CostDocument, ...] = ()
    books: tuple[PriceBookDocument, ...] = ()


def prices_of(document: PricesDocument) -> Prices:
    """Return the prices. Raises DomainError."""
    costs = tuple(_cost(cost, ("costs", index)) for index, cost in enumerate(document.costs))
    refuse_repeats(((cost.pool, cost.model) for cost in costs), ("costs",))
    books = tuple(_book(book, ("books", index)) for index, book in enumerate(document.books))
    refuse_repeats((book.id for book in books), ("books",), "id")
    return Prices(costs, books)


def _cost(document: CostDocument, path: FieldPath) -> PoolCost:
    pool = PoolId(read_name(document.pool, (*path, "pool")))
    model = read_model(document.model, (*path, "model"))
    return cost_of(document, pool, model, read_currency(document.currency, (*path, "currency")), path)


def cost_of(document: ChargeDocument, pool: PoolId, model: ModelId, currency: Currency, path: FieldPath) -> PoolCost:
    """Return what `pool` charges for `model`. Raises DomainError."""
    carbon = document.carbon
    return PoolCost(
        pool,
        model,
        _tokens(document, currency, path),
        read_amount(document.egress_per_gb, BYTES_PER_PRICE, (*path, "egress_per_gb")),
        tuple(_tariff(one, currency, (*path, "tariffs", index)) for index, one in enumerate(document.tariffs)),
        tuple(_dated(one, currency, (*path, "dated", index)) for index, one in enumerate(document.dated)),
        {
            EdgeId(read_name(edge, (*path, "egress_links", edge))): read_amount(
                price, BYTES_PER_PRICE, (*path, "egress_links", edge)
            )
            for edge, price in document.egress_links.items()
        },
        None
        if carbon is UNSET
        # A joule per million tokens is a microjoule per token.
        else Carbon(carbon.grams_per_kwh, carbon.input_joules_per_million, carbon.output_joules_per_million),
    )


def _tariff(document: TariffDocument, currency: Currency, path: FieldPath) -> Tariff:
    first, last = read_minute(document.from_time, (*path, "from_time")), read_minute(
        document.until_time, (*path, "until_time")
    )
    if first == last:
        raise DomainError((*path, "until_time"), "expected another time than from_time")
    return Tariff(first, last, _tokens(document, currency, path))


def _dated(document: DatedPriceDocument, currency: Currency, path: FieldPath) -> DatedPrice:
    from_ms = read_moment_ms(document.from_at, (*path, "from_at"))
    until_ms = NEVER_MS if document.until_at is UNSET else read_moment_ms(document.until_at, (*path, "until_at"))
    if until_ms <= from_ms:
        raise DomainError((*path, "until_at"), "expected a moment after from_at")
    return DatedPrice(from_ms, until_ms, _tokens(document, currency, path))


def _book(document: PriceBookDocument, path: FieldPath) -> PriceBook:
    models = tuple(
        read_model(price.model, (*path, "prices", index, "model")) for index, price in enumerate(document.prices)
    )
    refuse_repeats(models, (*path, "prices"), "model")
    prices = tuple(
        _tokens(price, read_currency(price.currency, (*path, "prices", index, "currency")), (*path, "prices", index))
        for index, price in enumerate(document.prices)
    )
    return PriceBook(read_name(document.id, (*path, "id")), dict(zip(models, prices, strict=True)))


def _tokens(
    document: ChargeDocument | ModelPriceDocument | TariffDocument | DatedPriceDocument,
    currency: Currency,
    path: FieldPath,
) -> TokenPrice:
    return TokenPrice(
        currency,
        read_amount(document.input_per_million, TOKENS_PER_PRICE, (*path, "input_per_million")),
        read_amount(document.cached_per_million, TOKENS_PER_PRICE, (*path, "cached_per_million")),
        read_amount(document.output_per_million, TOKENS_PER_PRICE, (*path, "output_per_million")),
    )
