"""Prices: what pools cost the operator, and what tenants pay. Amounts are quoted decimals of currency units."""

from __future__ import annotations

from orchestrator.files.fields import (
    Version,
    Written,
    read_amount,
    read_currency,
    read_model,
    read_name,
    refuse_repeats,
)
from orchestrator.files.typed import FieldPath
from orchestrator.ledger.money import TOKENS_PER_PRICE
from orchestrator.ledger.rating import PriceBook, TokenPrice
from orchestrator.placement.fleet import PoolCost, Prices
from orchestrator.policy.ids import PoolId

BYTES_PER_PRICE = 1_000_000_000
"""Egress is quoted per GB of 10^9 bytes, so that every price down to nine decimals is whole pico-units per byte."""


class CostDocument(Written, frozen=True):
    """What one pool costs the operator for one model."""

    pool: str
    model: str
    currency: str
    input_per_million: str
    cached_per_million: str
    output_per_million: str
    egress_per_gb: str


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
    return PoolCost(
        PoolId(read_name(document.pool, (*path, "pool"))),
        read_model(document.model, (*path, "model")),
        _tokens(document, path),
        read_amount(document.egress_per_gb, BYTES_PER_PRICE, (*path, "egress_per_gb")),
    )


def _book(document: PriceBookDocument, path: FieldPath) -> PriceBook:
    models = tuple(
        read_model(price.model, (*path, "prices", index, "model")) for index, price in enumerate(document.prices)
    )
    refuse_repeats(models, (*path, "prices"), "model")
    prices = tuple(_tokens(price, (*path, "prices", index)) for index, price in enumerate(document.prices))
    return PriceBook(read_name(document.id, (*path, "id")), dict(zip(models, prices, strict=True)))


def _tokens(document: CostDocument | ModelPriceDocument, path: FieldPath) -> TokenPrice:
    return TokenPrice(
        read_currency(document.currency, (*path, "currency")),
        read_amount(document.input_per_million, TOKENS_PER_PRICE, (*path, "input_per_million")),
        read_amount(document.cached_per_million, TOKENS_PER_PRICE, (*path, "cached_per_million")),
        read_amount(document.output_per_million, TOKENS_PER_PRICE, (*path, "output_per_million")),
    )
