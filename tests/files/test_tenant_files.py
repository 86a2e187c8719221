"""Tenants are loaded with hashes of keys, attested labels and pathways, or refused with the field that is wrong."""

from __future__ import annotations

import pytest

from orchestrator.files.fields import body_of
from orchestrator.files.tenants import TenantsDocument, tenants_of
from orchestrator.files.typed import fit
from orchestrator.policy.labels import Domestic, Grade, Labels, Personal
from orchestrator.policy.pathways import PathwayKind
from orchestrator.policy.tenants import KeyHash
from tests.files.documents import DROP, TENANTS, Path, broken, load, refusal

FIRST: Path = ("tenants", 0)
PATHWAY: Path = (*FIRST, "pathways", 0)

BAD: list[tuple[Path, object, str, str]] = [
    (("version",), True, "version", "expected"),
    (("tenants",), DROP, "tenants", "missing"),
    ((*FIRST, "secret"), "x", "tenants[0].secret", "one of the fields"),
    ((*FIRST, "id"), "Acme", "tenants[0].id", "a name"),
    (("tenants", 1, "id"), "acme", "tenants[1].id", "once"),
    ((*FIRST, "entity", "country"), "Singapore", "tenants[0].entity.country", "ISO 3166"),
    ((*FIRST, "keys", 0, "id"), "acme-1", "tenants[0].keys[0].id", "6 to 32"),
    ((*FIRST, "keys", 0, "sha256"), "AB" * 32, "tenants[0].keys[0].sha256", "64 lower-case hex"),
    ((*FIRST, "keys", 0, "sha256"), "tg_acme01_secret", "tenants[0].keys[0].sha256", "64 lower-case hex"),
    ((*FIRST, "keys", 1), {"id": "acme01", "sha256": "cd" * 32}, "tenants[0].keys[1].id", "tenant acme has it"),
    (("tenants", 1, "keys", 0, "id"), "acme01", "tenants[1].keys[0].id", "tenant acme has it"),
    ((*FIRST, "attested", "personal"), "low", "tenants[0].attested.personal", "none, personal, sensitive, unknown"),
    ((*FIRST, "attested", "grade"), "personal", "tenants[0].attested.grade", "public, general"),
    ((*FIRST, "attested", "domestic"), False, "tenants[0].attested.domestic", "text"),
    ((*FIRST, "attested", "personal"), None, "tenants[0].attested.personal", "text"),
    ((*FIRST, "attested", "origin"), DROP, "tenants[0].attested.origin", "at least one jurisdiction"),
    ((*FIRST, "attested", "origin"), ["SG", "ZZ"], "tenants[0].attested.origin[1]", "ISO 3166"),
    ((*FIRST, "floor", "grade"), "secret", "tenants[0].floor.grade", "public, general"),
    ((*FIRST, "models"), ["m", "m"], "tenants[0].models[1]", "once"),
    ((*FIRST, "models"), ["../m"], "tenants[0].models[0]", "name of a model"),
    ((*FIRST, "edges"), ["*"], "tenants[0].edges[0]", "a name"),
    ((*FIRST, "price_book"), "", "tenants[0].price_book", "a name"),
    ((*PATHWAY, "kind"), "trust", "tenants[0].pathways[0].kind", "eu_scc, eu_tia"),
    ((*PATHWAY, "exporter"), "someone", "tenants[0].pathways[0].exporter", "entity of this tenant"),
    ((*PATHWAY, "importer"), "*", "tenants[0].pathways[0].importer", "a name"),
    ((*PATHWAY, "countries"), [], "tenants[0].pathways[0].countries", "at least one"),
    ((*PATHWAY, "personal_max"), "unknown", "tenants[0].pathways[0].personal_max", "none, personal, sensitive"),
    ((*PATHWAY, "valid_until"), "2026-01-01", "tenants[0].pathways[0].valid_until", "after valid_from"),
    ((*PATHWAY, "valid_until"), "never", "tenants[0].pathways[0].valid_until", "a date such as"),
    ((*PATHWAY, "reference"), "", "tenants[0].pathways[0].reference", "printable"),
    ((*FIRST, "pathways", 1), TENANTS["tenants"][0]["pathways"][0], "tenants[0].pathways[1].id", "once"),
]


@pytest.mark.parametrize(("path", "value", "field", "expected"), BAD, ids=lambda part: str(part)[:60])
def test_a_bad_tenant_is_refused_with_its_field(path: Path, value: object, field: str, expected: str) -> None:
    error = refusal(broken(TENANTS, path, value), TenantsDocument, tenants_of)
    assert error.field == field
    assert expected in error.expected


def test_a_refusal_repeats_no_value() -> None:
    secret = "tg_acme01_" + "s" * 43
    error = refusal(broken(TENANTS, (*FIRST, "keys", 0, "sha256"), secret), TenantsDocument, tenants_of)
    assert secret not in str(error)


def test_tenants_arrive_whole() -> None:
    acme, other = load(TENANTS, TenantsDocument, tenants_of)
    assert acme.keys == (KeyHash(acme.keys[0].id, "ab" * 32),)
    assert acme.attested == Labels(Personal.NONE, Grade.GENERAL, Domestic.NO, frozenset(acme.attested.origin))
    assert acme.attested.origin == {"SG"}
    assert acme.floor == Labels(grade=Grade.GENERAL)
    assert acme.pathways[0].kind is PathwayKind.SG_CONTRACT
    assert acme.pathways[0].valid_from_ms == 1_767_225_600_000
    assert acme.pathways[0].valid_until_ms == 1_798_761_600_000
    assert other.attested == Labels(origin=other.attested.origin)
    assert other.models == frozenset()


def test_the_body_of_a_signed_section_has_the_shape_of_the_file() -> None:
    assert body_of(fit(TENANTS, TenantsDocument)) == TENANTS
