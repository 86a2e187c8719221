"""The one thing that `tidegate whatif` changes: read from an option, and applied to a bundle or to what is known."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

from msgspec import structs

from orchestrator.bundles.assemble import Bundle
from orchestrator.cli.law.explain import CannotExplain
from orchestrator.files.domain_error import DomainError
from orchestrator.files.fields import read_amount
from orchestrator.ledger.money import TOKENS_PER_PRICE
from orchestrator.ledger.rating import TokenPrice
from orchestrator.placement.fleet import Fleet, PoolCost, Prices
from orchestrator.placement.requests import PoolView
from orchestrator.placement.settings import PlacementSettings
from orchestrator.policy.bundle import Law
from orchestrator.policy.ids import PoolId

RTT_MS_MAX = 1_000_000
Views = Mapping[PoolId, PoolView]


def _same_bundle(bundle: Bundle) -> Bundle:
    return bundle


def _same_views(views: Views) -> Views:
    return views


@dataclass(frozen=True, slots=True)
class Change:
    """One change."""

    option: str
    value: str
    """As it was written."""
    to_bundle: Callable[[Bundle], Bundle] = _same_bundle
    to_views: Callable[[Views], Views] = _same_views


def price_change(text: str, bundles: Collection[Bundle]) -> Change:
    """Read ``POOL[/MODEL]=INPUT,CACHED,OUTPUT``, per million tokens at every hour. Raises CannotExplain."""
    left, _, right = text.partition("=")
    name, _, model = left.partition("/")
    amounts = right.split(",")
    if not name or len(amounts) != 3:
        raise CannotExplain("--price: expected POOL[/MODEL]=INPUT,CACHED,OUTPUT, such as cn-river=0.2,0.05,0.4")
    parts = ("input", "cached", "output")
    try:
        pico = [
            read_amount(amount, TOKENS_PER_PRICE, (part,)) for part, amount in zip(parts, amounts, strict=True)
        ]
    except DomainError as refusal:
        raise CannotExplain(f"--price: {refusal}") from None
    pool = _known("--price", name, bundles)
    priced = sorted({one.model for bundle in bundles for one in bundle.prices.costs if one.pool == pool})
    if not priced or (model and model not in priced):
        has = ", ".join(priced) or "none"
        raise CannotExplain(f"--price: expected a pool and a model that the prices name; of {pool} they name {has}")

    def changed(cost: PoolCost) -> PoolCost:
        if cost.pool != pool or (model and cost.model != model):
            return cost
        return replace(cost, tokens=TokenPrice(cost.tokens.currency, *pico), tariffs=(), dated=())

    def to_bundle(bundle: Bundle) -> Bundle:
        return replace(bundle, prices=Prices(tuple(map(changed, bundle.prices.costs)), bundle.prices.books))

    return Change("--price", text, to_bundle)


def outage_change(name: str, bundles: Collection[Bundle]) -> Change:
    """The pool is gone: no session, no answer to a probe. Raises CannotExplain."""
    pool = _known("--outage", name, bundles)
    return Change("--outage", name, to_views=lambda views: _view(views, pool, up=False))


def rtt_change(text: str, bundles: Collection[Bundle]) -> Change:
    """Read ``POOL=MS``: a measured round trip. Raises CannotExplain."""
    name, _, right = text.partition("=")
    if not name or not right.isascii() or not right.isdigit() or len(right) > 7 or int(right) > RTT_MS_MAX:
        raise CannotExplain(f"--rtt: expected POOL=MS with at most {RTT_MS_MAX} milliseconds, such as cn-river=220")
    pool, rtt_us = _known("--rtt", name, bundles), int(right) * 1000
    return Change("--rtt", text, to_views=lambda views: _view(views, pool, rtt_us=rtt_us))


def drain_change(name: str, bundles: Collection[Bundle]) -> Change:
    """The settings drain the pool. Raises CannotExplain."""
    pool = _known("--drain", name, bundles)

    def to_bundle(bundle: Bundle) -> Bundle:
        settings = settings_in(bundle)
        return replace(bundle, settings=replace(settings, drains=settings.drains | {pool}))

    return Change("--drain", name, to_bundle)


def without_change(name: str, bundles: Collection[Bundle]) -> Change:
    """The fleet no longer declares the pool. Raises CannotExplain."""
    pool = _known("--without", name, bundles)

    def to_bundle(bundle: Bundle) -> Bundle:
        fleet = bundle.fleet
        kept = tuple(one for one in fleet.pools if one.id != pool)
        return replace(bundle, fleet=Fleet(fleet.edges, kept, fleet.sinks))

    return Change("--without", name, to_bundle)


def law_change(path: str, other: Bundle) -> Change:
    """The packs of another bundle decide; tenants, fleet, prices and settings stay."""
    return Change(
        "--law",
        path,
        to_bundle=lambda bundle: replace(bundle, law=Law(other.law.packs, bundle.law.horizons)),
    )


def settings_change(path: str, settings: PlacementSettings, bundles: Collection[Bundle]) -> Change:
    """Other settings. Raises CannotExplain where their currency is another one."""
    for bundle in bundles:
        currency = settings_in(bundle).currency
        if settings.currency != currency:
            raise CannotExplain(f"--settings: currency: expected {currency}, as the settings of the bundle have it")
    return Change("--settings", path, to_bundle=lambda bundle: replace(bundle, settings=settings))


def settings_in(bundle: Bundle) -> PlacementSettings:
    """Return the settings of a bundle. Raises CannotExplain where it has none."""
    if bundle.settings is None:
        raise CannotExplain("expected a bundle with settings.yaml: without settings nothing is placed")
    return bundle.settings


def _known(option: str, name: str, bundles: Collection[Bundle]) -> PoolId:
    known = sorted({pool.id for bundle in bundles for pool in bundle.fleet.pools})
    if name not in known:
        raise CannotExplain(f"{option}: expected a pool of the bundle's fleet; it has {', '.join(known) or 'none'}")
    return PoolId(name)


def _view(views: Views, pool: PoolId, **changes: object) -> Views:
    return {name: structs.replace(view, **changes) if name == pool else view for name, view in views.items()}
