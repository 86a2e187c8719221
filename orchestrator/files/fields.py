"""Fields that several documents share: names, jurisdictions, dates, prices, keys, labels, entities.

Every function reads one field, and raises DomainError with the path of that field. A field that may be left out is
UNSET, never null: `effective_until:` with nothing behind it is a slip, not an answer.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Sequence
from datetime import date
from typing import Annotated, Literal, TypeVar, cast

import msgspec
from msgspec import UNSET, Meta, UnsetType

from orchestrator.evidence.canonical import JsonValue
from orchestrator.files.domain_error import DomainError
from orchestrator.files.typed import FieldPath
from orchestrator.ledger.money import Currency, parse_units
from orchestrator.policy.entities import Entity, Owner
from orchestrator.policy.ids import EntityId, ModelId, is_name
from orchestrator.policy.jurisdictions import Jurisdiction, expand, parse_jurisdiction
from orchestrator.policy.labels import CLEAN_WORDS, DOMESTIC_WORDS, GRADE_WORDS, PERSONAL_WORDS, Labels
from orchestrator.policy.vocabulary import UNKNOWN, Asset, Category, Purpose

Word = TypeVar("Word")

Version = Literal[1]
"""The version of the format of a document."""
Count = Annotated[int, Meta(ge=1, le=1_000_000_000)]
CountOrZero = Annotated[int, Meta(ge=0, le=1_000_000_000)]
Text = Annotated[str, Meta(max_length=600)]
Day = Annotated[str, Meta(extra_json_schema={"format": "date"})]
"""An ISO 8601 date."""


def _words(words: Iterable[str]) -> dict[str, object]:
    return {"enum": list(words)}


CATEGORY_WORDS = (*(category.value for category in Category), UNKNOWN)
PURPOSE_WORDS = (*(purpose.value for purpose in Purpose), UNKNOWN)
ASSET_WORDS = (*(asset.value for asset in Asset), UNKNOWN)
PersonalWord = Annotated[str, Meta(extra_json_schema=_words(PERSONAL_WORDS))]
GradeWord = Annotated[str, Meta(extra_json_schema=_words(GRADE_WORDS))]
DomesticWord = Annotated[str, Meta(extra_json_schema=_words(DOMESTIC_WORDS))]
CleanWord = Annotated[str, Meta(extra_json_schema=_words(CLEAN_WORDS))]
CategoryWord = Annotated[str, Meta(extra_json_schema=_words(CATEGORY_WORDS))]
PurposeWord = Annotated[str, Meta(extra_json_schema=_words(PURPOSE_WORDS))]
AssetWord = Annotated[str, Meta(extra_json_schema=_words(ASSET_WORDS))]

DAY_MS = 86_400_000
NAME_EXPECTED = "expected a name of lower-case letters, digits, dots and hyphens, at most 63 characters"
TimeOfDay = Annotated[str, Meta(extra_json_schema={"pattern": "^[0-2][0-9]:[0-5][0-9]$"})]
"""Hours and minutes in UTC, such as 22:30."""
Moment = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]
"""An ISO 8601 time in UTC to the second, such as 2026-12-31T16:00:00Z."""
_TIME_OF_DAY = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])\Z")
_MOMENT = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2})T([01][0-9]|2[0-3]):([0-5][0-9]):([0-5][0-9])Z\Z")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}\Z")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}\Z")
_EPOCH_DAY = date(1970, 1, 1).toordinal()
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}\Z")
_CURRENCY = re.compile(r"[A-Z]{3}\Z")
# One spelling per amount, and bounds that keep it exact: no sign, exponent, underscore or leading zero.
_DECIMAL = re.compile(r"(?:0|[1-9][0-9]{0,8})(?:\.[0-9]{1,12})?\Z")
_PUBLIC_KEY_BYTES = 32


class Written(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What people write and what a signed section carries: one shape for both."""


def body_of(document: Written) -> dict[str, JsonValue]:
    """Return a document as the JSON body of a signed section. A default that is written out is left out of it."""
    return cast(dict[str, JsonValue], msgspec.json.decode(msgspec.json.encode(document)))


class OwnerDocument(Written, frozen=True):
    """Who holds a share of an entity."""

    entity: str
    country: str
    share_percent: Annotated[int, Meta(ge=1, le=100)]


class EntityDocument(Written, frozen=True):
    """A legal person."""

    id: str
    country: str
    owners: tuple[OwnerDocument, ...] = ()


class LabelsDocument(Written, frozen=True):
    """What one source says of a payload. What is left out is not said."""

    personal: PersonalWord | UnsetType = UNSET
    grade: GradeWord | UnsetType = UNSET
    domestic: DomesticWord | UnsetType = UNSET
    clean: CleanWord | UnsetType = UNSET
    categories: tuple[CategoryWord, ...] | UnsetType = UNSET
    """The empty list says that there is no personal data in it."""
    origin: tuple[str, ...] = ()
    located: tuple[str, ...] | UnsetType = UNSET
    collected: tuple[str, ...] | UnsetType = UNSET
    purpose: tuple[PurposeWord, ...] | UnsetType = UNSET
    asset: tuple[AssetWord, ...] | UnsetType = UNSET


def read_name(text: str, path: FieldPath) -> str:
    """Return a name that people may choose."""
    if not is_name(text):
        raise DomainError(path, NAME_EXPECTED)
    return text


def read_names(texts: Sequence[str], path: FieldPath) -> tuple[str, ...]:
    """Return names without repeats."""
    names = tuple(read_name(text, (*path, index)) for index, text in enumerate(texts))
    refuse_repeats(names, path)
    return names


def read_model(text: str, path: FieldPath) -> ModelId:
    """Return a model id, as tenants write it in their requests."""
    if _MODEL.match(text) is None:
        raise DomainError(path, "expected the name of a model: letters, digits and ._:/@+- in at most 128 characters")
    return ModelId(text)


def read_revision(text: str, path: FieldPath) -> str:
    """Return the revision of a model, such as a commit or a date."""
    if _REVISION.match(text) is None:
        raise DomainError(path, "expected a revision: letters, digits and ._+- in at most 64 characters")
    return text


def read_minute(text: str, path: FieldPath) -> int:
    """Return a time of the day, as minutes since midnight UTC."""
    found = _TIME_OF_DAY.match(text)
    if found is None:
        raise DomainError(path, "expected a quoted time of the day in UTC, such as \"22:30\"")
    return int(found[1]) * 60 + int(found[2])


def read_moment_ms(text: str, path: FieldPath) -> int:
    """Return a moment in UTC, as milliseconds since 1970."""
    found = _MOMENT.match(text)
    if found is None:
        raise DomainError(path, "expected a quoted time in UTC, such as \"2026-12-31T16:00:00Z\"")
    of_day_s = (int(found[2]) * 60 + int(found[3])) * 60 + int(found[4])
    return read_day_ms(found[1], path) + of_day_s * 1000


def read_text(text: str, path: FieldPath) -> str:
    """Return a sentence for people: printable, so that it can stand in an answer, a log line and a terminal."""
    if not text.strip() or not text.isprintable():
        raise DomainError(path, "expected one line of printable text")
    return text


def refuse_repeats(values: Iterable[object], path: FieldPath, field: str | None = None) -> None:
    """Raise for the first value that occurred before; `field` names the field of each item that holds it."""
    seen: dict[object, int] = {}
    for index, value in enumerate(values):
        if value in seen:
            place = (*path, index) if field is None else (*path, index, field)
            raise DomainError(place, f"expected it once, but item {seen[value]} has it already (counted from 0)")
        seen[value] = index


def read_country(text: str, path: FieldPath) -> Jurisdiction:
    """Return one jurisdiction."""
    try:
        return parse_jurisdiction(text)
    except ValueError as refusal:
        raise DomainError(path, str(refusal)) from None


def read_jurisdictions(names: Sequence[str], path: FieldPath) -> frozenset[Jurisdiction]:
    """Return the jurisdictions behind codes and group names; there must be one at least, and none twice."""
    if not names:
        raise DomainError(path, "expected at least one jurisdiction")
    refuse_repeats(names, path)
    found: frozenset[Jurisdiction] = frozenset()
    for index, name in enumerate(names):
        try:
            found |= expand((name,))
        except ValueError as refusal:
            raise DomainError((*path, index), f"{refusal}, or the group EEA") from None
    return found


def read_day_ms(text: str, path: FieldPath) -> int:
    """Return midnight UTC of an ISO 8601 date, in Unix milliseconds."""
    try:
        if _DATE.match(text) is None:
            raise ValueError
        day = date.fromisoformat(text)
    except ValueError:
        raise DomainError(path, "expected a date such as 2026-01-31") from None
    return (day.toordinal() - _EPOCH_DAY) * DAY_MS


def read_amount(text: str, divisor: int, path: FieldPath) -> int:
    """Return a quoted decimal of currency units, divided by `divisor`, in pico-units."""
    if _DECIMAL.match(text) is None:
        raise DomainError(path, 'expected a quoted decimal such as "0.25": at most 9 digits and 12 decimals, no sign')
    try:
        return parse_units(text, divisor)
    except ValueError as refusal:
        raise DomainError(path, str(refusal)) from None


def read_currency(text: str, path: FieldPath) -> Currency:
    """Return an ISO 4217 code."""
    if _CURRENCY.match(text) is None:
        raise DomainError(path, "expected an ISO 4217 code in capitals, such as USD")
    return Currency(text)


def read_public_key(text: str, path: FieldPath) -> bytes:
    """Return the 32 bytes of an Ed25519 public key in base64; one text per key."""
    try:
        key = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        key = b""
    if len(key) != _PUBLIC_KEY_BYTES or base64.b64encode(key).decode("ascii") != text:
        raise DomainError(path, f"expected {_PUBLIC_KEY_BYTES} bytes in base64")
    return key


def read_word(text: str, words: dict[str, Word], path: FieldPath) -> Word:
    """Return the value of a word from a closed vocabulary."""
    if text not in words:
        raise DomainError(path, "expected one of " + ", ".join(words))
    return words[text]


def read_words(texts: Sequence[str], words: Iterable[str], path: FieldPath) -> frozenset[str]:
    """Return a set of words from a closed vocabulary, none twice."""
    allowed = tuple(words)
    refuse_repeats(texts, path)
    for index, text in enumerate(texts):
        if text not in allowed:
            raise DomainError((*path, index), "expected one of " + ", ".join(allowed))
    return frozenset(texts)


def read_codes_or_unknown(names: Sequence[str], path: FieldPath) -> frozenset[Jurisdiction]:
    """Return jurisdictions; the one word `unknown` stands for any."""
    if tuple(names) == (UNKNOWN,):
        return frozenset({Jurisdiction(UNKNOWN)})
    return read_jurisdictions(names, path)


def read_labels(document: LabelsDocument, path: FieldPath) -> Labels:
    """Return what one source says of a payload."""
    personal, grade, domestic, clean = document.personal, document.grade, document.domestic, document.clean
    categories, purpose, asset = document.categories, document.purpose, document.asset
    located, collected, origin = document.located, document.collected, document.origin
    return Labels(
        personal=None if personal is UNSET else read_word(personal, PERSONAL_WORDS, (*path, "personal")),
        grade=None if grade is UNSET else read_word(grade, GRADE_WORDS, (*path, "grade")),
        domestic=None if domestic is UNSET else read_word(domestic, DOMESTIC_WORDS, (*path, "domestic")),
        clean=None if clean is UNSET else read_word(clean, CLEAN_WORDS, (*path, "clean")),
        categories=None if categories is UNSET else read_words(categories, CATEGORY_WORDS, (*path, "categories")),
        origin=read_codes_or_unknown(origin, (*path, "origin")) if origin else frozenset(),
        located=None if located is UNSET else read_codes_or_unknown(located, (*path, "located")),
        collected=None if collected is UNSET else read_codes_or_unknown(collected, (*path, "collected")),
        purpose=None if purpose is UNSET else _some(purpose, PURPOSE_WORDS, (*path, "purpose")),
        asset=None if asset is UNSET else _some(asset, ASSET_WORDS, (*path, "asset")),
    )


def _some(texts: Sequence[str], words: Iterable[str], path: FieldPath) -> frozenset[str]:
    if not texts:
        raise DomainError(path, "expected at least one")
    return read_words(texts, words, path)


def read_entity(document: EntityDocument, path: FieldPath) -> Entity:
    """Return a legal person with its owners, whose shares are at most 100 % together."""
    owners = tuple(
        Owner(
            EntityId(read_name(owner.entity, (*path, "owners", index, "entity"))),
            read_country(owner.country, (*path, "owners", index, "country")),
            owner.share_percent,
        )
        for index, owner in enumerate(document.owners)
    )
    refuse_repeats((owner.entity for owner in owners), (*path, "owners"), "entity")
    if sum(owner.share_percent for owner in owners) > 100:
        raise DomainError((*path, "owners"), "expected shares of at most 100 percent together")
    name = EntityId(read_name(document.id, (*path, "id")))
    if any(owner.entity == name for owner in owners):
        raise DomainError((*path, "owners"), "expected other entities: none owns itself")
    return Entity(name, read_country(document.country, (*path, "country")), owners)
