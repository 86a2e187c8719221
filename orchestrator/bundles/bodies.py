"""What a section's document means: the same shapes as the files that people write. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from orchestrator.bundles.formats import Section, SectionKind
from orchestrator.bundles.refusals import BundleRefused, RefusalCode
from orchestrator.files.domain_error import DomainError
from orchestrator.files.fleet import FleetDocument, fleet_of
from orchestrator.files.pack_shapes import PackDocument
from orchestrator.files.packs import pack_of
from orchestrator.files.prices import PricesDocument, prices_of
from orchestrator.files.settings import SettingsDocument, settings_of
from orchestrator.files.tenants import TenantsDocument, tenants_of
from orchestrator.files.typed import Misfit, fit
from orchestrator.placement.fleet import Fleet, Prices
from orchestrator.placement.settings import PlacementSettings
from orchestrator.policy.packs import Pack
from orchestrator.policy.tenants import Tenant

Shape = TypeVar("Shape")
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Content:
    """What one section holds: one of these, by its kind."""

    title: str
    """The section as sentences call it."""
    pack: Pack | None = field(default=None, repr=False)
    fleet: Fleet | None = field(default=None, repr=False)
    prices: Prices | None = field(default=None, repr=False)
    settings: PlacementSettings | None = field(default=None, repr=False)
    tenants: tuple[Tenant, ...] = field(default=(), repr=False)


def content_of(section: Section) -> Content:
    """Return what a section holds. Raises BundleRefused with the field at fault, and without its value."""
    title = f"{section.kind.value}/{section.name} of {section.side}"
    match section.kind:
        case SectionKind.PACK:
            return Content(title, pack=_read(section, PackDocument, pack_of))
        case SectionKind.FLEET:
            return Content(title, fleet=_read(section, FleetDocument, lambda form: fleet_of(form, section.side)))
        case SectionKind.PRICES:
            return Content(title, prices=_read(section, PricesDocument, prices_of))
        case SectionKind.SETTINGS:
            return Content(title, settings=_read(section, SettingsDocument, settings_of))
        case SectionKind.TENANTS:
            return Content(title, tenants=_read(section, TenantsDocument, tenants_of))


def _read(section: Section, shape: type[Shape], to_domain: Callable[[Shape], Value]) -> Value:
    try:
        return to_domain(fit(section.document, shape))
    except (Misfit, DomainError) as refusal:
        reason = str(refusal)
    raise BundleRefused(RefusalCode.INVALID_SECTION, f"Section {section.kind.value}/{section.name}: {reason}.")
