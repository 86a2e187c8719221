"""Tenants are loaded with hashes of keys, attested labels and pathways, or refused with the field that is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.files.fields import body_of
from orchestrator.files.tenants import TenantsDocument, tenants_of
from orchestrator.files.typed import fit
from orchestrator.policy.facts import Declared
from orchestrator.policy.labels import Clean, Domestic, Grade, Labels, Personal
from orchestrator.policy.pathways import ALL_CATEGORIES, SCC_MODULES, PathwayKind, Role
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
    ((*FIRST, "keep_results"), "yes", "tenants[0].keep_results", "true or false"),
    ((*PATHWAY, "kind"), "trust", "tenants[0].pathways[0].kind", "eu_scc, eu_tia"),
    ((*PATHWAY, "exporter"), "someone", "tenants[0].pathways[0].exporter", "entity of this tenant"),
    ((*PATHWAY, "importer"), "*", "tenants[0].pathways[0].importer", "a name"),
    ((*PATHWAY, "countries"), [], "tenants[0].pathways[0].countries", "at least one"),
    ((*PATHWAY, "personal_max"), "unknown", "tenants[0].pathways[0].personal_max", "none, personal, sensitive"),
    ((*PATHWAY, "valid_until"), "2026-01-01", "tenants[0].pathways[0].valid_until", "after valid_from"),
    ((*PATHWAY, "valid_until"), "never", "tenants[0].pathways[0].valid_until", "a date such as"),
    ((*PATHWAY, "reference"), "", "tenants[0].pathways[0].reference", "printable"),
    ((*FIRST, "pathways", 1), TENANTS["tenants"][0]["pathways"][0], "tenants[0].pathways[1].id", "once"),
    # What the contract says of payloads.
    ((*FIRST, "attested", "clean"), "dirty", "tenants[0].attested.clean", "anonymised, deidentified"),
    ((*FIRST, "attested", "categories"), ["shoes"], "tenants[0].attested.categories[0]", "contact, account"),
    ((*FIRST, "attested", "categories"), ["work", "work"], "tenants[0].attested.categories[1]", "once"),
    ((*FIRST, "attested", "located"), [], "tenants[0].attested.located", "at least one"),
    ((*FIRST, "attested", "located"), ["sg"], "tenants[0].attested.located[0]", "ISO 3166"),
    ((*FIRST, "attested", "collected"), ["SG", "unknown"], "tenants[0].attested.collected[1]", "ISO 3166"),
    ((*FIRST, "attested", "purpose"), [], "tenants[0].attested.purpose", "at least one"),
    ((*FIRST, "attested", "purpose"), ["fun"], "tenants[0].attested.purpose[0]", "inference, embedding"),
    ((*FIRST, "attested", "asset"), ["gpu"], "tenants[0].attested.asset[0]", "payload, kv_cache"),
    ((*FIRST, "floor", "categories"), ["all"], "tenants[0].floor.categories[0]", "contact, account"),
    # What the tenant says of itself.
    ((*FIRST, "role"), "owner", "tenants[0].role", "controller, processor"),
    ((*FIRST, "role"), DROP, "tenants[0].role", "pathways are held in a role"),
    ((*FIRST, "role"), None, "tenants[0].role", "controller, processor"),
    ((*FIRST, "critical_infrastructure"), "no", "tenants[0].critical_infrastructure", "true or false"),
    ((*FIRST, "critical_infrastructure"), "unknown", "tenants[0].critical_infrastructure", "true or false"),
    ((*FIRST, "notices", 0, "id"), "SG Notice", "tenants[0].notices[0].id", "a name"),
    ((*FIRST, "notices", 0, "version"), "", "tenants[0].notices[0].version", "printable"),
    ((*FIRST, "notices", 0, "version"), "a\nb", "tenants[0].notices[0].version", "printable"),
    ((*FIRST, "notices", 0, "version"), 3, "tenants[0].notices[0].version", "text"),
    ((*FIRST, "notices", 0, "version"), DROP, "tenants[0].notices[0].version", "missing"),
    ((*FIRST, "notices", 1), {"id": "sg-notice", "version": "2"}, "tenants[0].notices[1].id", "once"),
    # Pathways open only what they name.
    ((*PATHWAY, "exporter_role"), DROP, "tenants[0].pathways[0].exporter_role", "missing"),
    ((*PATHWAY, "exporter_role"), "exporter", "tenants[0].pathways[0].exporter_role", "controller, processor"),
    ((*PATHWAY, "importer_role"), DROP, "tenants[0].pathways[0].importer_role", "missing"),
    ((*PATHWAY, "importer_role"), ["processor"], "tenants[0].pathways[0].importer_role", "controller, processor"),
    ((*PATHWAY, "categories"), DROP, "tenants[0].pathways[0].categories", "missing"),
    ((*PATHWAY, "categories"), [], "tenants[0].pathways[0].categories", "or [all]"),
    ((*PATHWAY, "categories"), "all", "tenants[0].pathways[0].categories", "a list"),
    ((*PATHWAY, "categories"), ["all", "contact"], "tenants[0].pathways[0].categories[0]", "contact, account"),
    ((*PATHWAY, "categories"), ["contact", "unknown"], "tenants[0].pathways[0].categories[1]", "contact, account"),
    ((*PATHWAY, "categories"), ["contact", "contact"], "tenants[0].pathways[0].categories[1]", "once"),
    ((*PATHWAY, "purposes"), ["unknown"], "tenants[0].pathways[0].purposes[0]", "inference, embedding"),
    ((*PATHWAY, "purposes"), ["all"], "tenants[0].pathways[0].purposes[0]", "inference, embedding"),
    ((*PATHWAY, "purposes"), [], "tenants[0].pathways[0].purposes", "at least one"),
    ((*PATHWAY, "onward"), ["Nobody Ltd"], "tenants[0].pathways[0].onward[0]", "a name"),
    ((*PATHWAY, "onward"), ["sub", "sub"], "tenants[0].pathways[0].onward[1]", "once"),
    ((*PATHWAY, "module"), 2, "tenants[0].pathways[0].module", "only eu_scc has modules"),
    ((*PATHWAY, "module"), 5, "tenants[0].pathways[0].module", "<= 4"),
    ((*PATHWAY, "module"), 0, "tenants[0].pathways[0].module", ">= 1"),
    ((*PATHWAY, "module"), "2", "tenants[0].pathways[0].module", "whole number"),
    ((*PATHWAY, "kind"), "eu_scc", "tenants[0].pathways[0].module", "the module of the clauses"),
    ((*PATHWAY, "transit"), ["SG"], "tenants[0].pathways[0].transit", "one of the fields"),
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
    assert (acme.pathways[0].exporter_role, acme.pathways[0].importer_role) == (Role.CONTROLLER, Role.PROCESSOR)
    assert acme.pathways[0].categories == {"contact", "work"}
    assert acme.pathways[0].purposes == {"inference"}
    assert (acme.pathways[0].onward, acme.pathways[0].module) == (frozenset(), None)
    assert (acme.role, acme.critical_infrastructure) == (Role.CONTROLLER, Declared.NO)
    assert acme.notices == (("sg-notice", "2026-03"),)
    assert other.attested == Labels(origin=other.attested.origin)
    assert other.models == frozenset()
    assert (acme.keep_results, other.keep_results) == (False, False), "kept only where the contract says so"
    (keeps, _) = load(broken(TENANTS, (*FIRST, "keep_results"), True), TenantsDocument, tenants_of)
    assert keeps.keep_results
    assert (other.role, other.critical_infrastructure, other.notices) == (None, Declared.UNKNOWN, ())


def test_everything_that_a_contract_may_attest_arrives() -> None:
    attested = {
        "personal": "personal",
        "clean": "tokenised",
        "categories": ["contact", "unknown"],
        "origin": ["SG", "NO"],
        "located": ["unknown"],
        "collected": ["EEA"],
        "purpose": ["inference", "billing"],
        "asset": ["payload"],
    }
    acme, _ = load(broken(TENANTS, (*FIRST, "attested"), attested), TenantsDocument, tenants_of)
    assert acme.attested.personal is Personal.PERSONAL
    assert acme.attested.clean is Clean.TOKENISED
    assert acme.attested.categories == {"contact", "unknown"}
    assert acme.attested.origin == {"SG", "NO"}
    assert acme.attested.located == {"unknown"}
    assert {"DE", "NO"} <= (acme.attested.collected or frozenset())
    assert (acme.attested.purpose, acme.attested.asset) == ({"inference", "billing"}, {"payload"})
    assert (acme.attested.grade, acme.attested.domestic) == (None, None)


def test_no_categories_is_another_thing_than_categories_unsaid() -> None:
    acme, other = load(broken(TENANTS, (*FIRST, "attested", "categories"), []), TenantsDocument, tenants_of)
    assert acme.attested.categories == frozenset()
    assert other.attested.categories is None


def test_a_tenant_may_operate_critical_infrastructure_and_give_several_notices() -> None:
    notices = [{"id": "sg-notice", "version": "2"}, {"id": "eu-13-cn", "version": "1, of May"}]
    document = broken(broken(TENANTS, (*FIRST, "notices"), notices), (*FIRST, "critical_infrastructure"), True)
    acme, _ = load(document, TenantsDocument, tenants_of)
    assert acme.critical_infrastructure is Declared.YES
    assert acme.notices == (("eu-13-cn", "1, of May"), ("sg-notice", "2")), "in one order, whatever the file says"


def clauses(module: int, exporter_role: Role, importer_role: Role) -> dict[str, Any]:
    """The tenant with a pathway under the EU clauses instead of its contract."""
    pathway = {
        **TENANTS["tenants"][0]["pathways"][0],
        "kind": "eu_scc",
        "module": module,
        "exporter_role": exporter_role.value,
        "importer_role": importer_role.value,
    }
    return broken(TENANTS, PATHWAY, pathway)


@pytest.mark.parametrize("exporter_role", Role)
@pytest.mark.parametrize("importer_role", Role)
@pytest.mark.parametrize("module", SCC_MODULES)
def test_a_module_of_the_clauses_says_who_is_who(module: int, exporter_role: Role, importer_role: Role) -> None:
    document = clauses(module, exporter_role, importer_role)
    meant = SCC_MODULES[module]
    if (exporter_role, importer_role) == meant:
        pathway = load(document, TenantsDocument, tenants_of)[0].pathways[0]
        assert (pathway.module, pathway.exporter_role, pathway.importer_role) == (module, *meant)
        return
    error = refusal(document, TenantsDocument, tenants_of)
    wrong, expected = ("exporter_role", meant[0]) if exporter_role is not meant[0] else ("importer_role", meant[1])
    assert error.field == f"tenants[0].pathways[0].{wrong}"
    assert error.expected == f"expected {expected.value}, as in module {module} of the clauses"


def test_a_pathway_with_everything_arrives() -> None:
    more = {"categories": ["all"], "purposes": ["inference", "embedding"], "onward": ["sub-b", "sub-a"]}
    document = broken(TENANTS, PATHWAY, {**TENANTS["tenants"][0]["pathways"][0], **more})
    pathway = load(document, TenantsDocument, tenants_of)[0].pathways[0]
    assert pathway.categories == ALL_CATEGORIES
    assert pathway.purposes == {"inference", "embedding"}
    assert pathway.onward == {"sub-a", "sub-b"}


def test_a_pathway_that_names_no_purpose_is_for_inference() -> None:
    explicit = broken(TENANTS, (*PATHWAY, "purposes"), ["inference"])
    assert load(explicit, TenantsDocument, tenants_of) == load(TENANTS, TenantsDocument, tenants_of)


def test_the_body_of_a_signed_section_has_the_shape_of_the_file() -> None:
    assert body_of(fit(TENANTS, TenantsDocument)) == TENANTS
