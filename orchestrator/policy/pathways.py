"""Pathways: a recorded legal basis between named entities in roles, with countries, categories, purposes and validity.

A pathway opens only what it names. One signed with operator A never opens operator B's pool.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from orchestrator.policy.ids import EntityId, PathwayId
from orchestrator.policy.jurisdictions import Jurisdiction
from orchestrator.policy.labels import Effective, Personal
from orchestrator.policy.places import Place
from orchestrator.policy.vocabulary import Purpose


class Role(Enum):
    """In which role an entity handles the data (GDPR art. 4(7) and (8))."""

    CONTROLLER = "controller"
    PROCESSOR = "processor"


class PathwayKind(Enum):
    """The legal bases that a pack may ask for."""

    CN_ASSESSMENT = "cn_assessment"
    CN_SCC = "cn_scc"
    CN_CERTIFICATION = "cn_certification"
    CN_CONTRACT_NECESSITY = "cn_contract_necessity"
    """CAC Order 16 art. 5(1)."""
    CN_HR_NECESSITY = "cn_hr_necessity"
    """CAC Order 16 art. 5(2)."""
    CN_EMERGENCY = "cn_emergency"
    """CAC Order 16 art. 5(3)."""
    CN_FTZ_LIST = "cn_ftz_list"
    """CAC Order 16 art. 6: outside of the negative list of a free-trade zone."""
    CN_GENAI_FILING = "cn_genai_filing"
    CN_TECH_LICENCE = "cn_tech_licence"
    EU_SCC = "eu_scc"
    """Commission Decision (EU) 2021/914, with its module."""
    EU_TIA = "eu_tia"
    EU_BCR = "eu_bcr"
    EU_DPF = "eu_dpf"
    """The recipient is certified under the EU-US Data Privacy Framework."""
    UK_IDTA = "uk_idta"
    UK_ADDENDUM = "uk_addendum"
    UK_TRA = "uk_tra"
    US_DSP_RESTRICTED = "us_dsp_restricted"
    """CISA security requirements, due diligence and audit are in place (28 CFR 202.401)."""
    US_DSP_EXEMPT = "us_dsp_exempt"
    """A recorded determination of counsel under 28 CFR 202.249(b) or subpart E."""
    SG_CONTRACT = "sg_contract"
    SG_CBPR = "sg_cbpr"
    SG_BCR = "sg_bcr"
    SG_CONSENT = "sg_consent"
    JP_CONSENT = "jp_consent"
    JP_EQUIVALENT = "jp_equivalent"
    KR_CONSENT = "kr_consent"
    KR_CERTIFICATION = "kr_certification"
    KR_CONTRACT = "kr_contract"
    VN_DOSSIER = "vn_dossier"
    ID_SAFEGUARDS = "id_safeguards"
    ID_CONSENT = "id_consent"
    IN_CONTRACT = "in_contract"
    IN_CONSENT = "in_consent"
    BR_SCC = "br_scc"
    BR_CLAUSES = "br_clauses"
    BR_BCR = "br_bcr"
    AE_CONTRACT = "ae_contract"
    AE_CONSENT = "ae_consent"
    SA_SCC = "sa_scc"
    SA_BCR = "sa_bcr"
    SA_RISK_ASSESSMENT = "sa_risk_assessment"
    RECORDED_BASIS = "recorded_basis"
    """A basis under the law of a country for which only the default pack speaks."""


SCC_MODULES: dict[int, tuple[Role, Role]] = {
    1: (Role.CONTROLLER, Role.CONTROLLER),
    2: (Role.CONTROLLER, Role.PROCESSOR),
    3: (Role.PROCESSOR, Role.PROCESSOR),
    4: (Role.PROCESSOR, Role.CONTROLLER),
}
"""Exporter and importer of each module of Decision (EU) 2021/914."""

ALL_CATEGORIES = frozenset({"all"})
"""What a pathway says that covers every category, the unknown ones too."""
INFERENCE_ONLY = frozenset({Purpose.INFERENCE.value})


@dataclass(frozen=True, slots=True)
class Pathway:
    """What a tenant holds."""

    id: PathwayId
    kind: PathwayKind
    exporter: EntityId
    exporter_role: Role
    importer: EntityId
    importer_role: Role
    countries: frozenset[Jurisdiction]
    """Where the importer may have the data: soil, access and ownership of the place."""
    personal_max: Personal
    """The most personal payload that it covers; never `unknown`."""
    categories: frozenset[str]
    """Categories of personal data that it covers, or ALL_CATEGORIES."""
    valid_from_ms: int
    valid_until_ms: int
    """First millisecond at which it no longer holds."""
    reference: str
    """Where the paper lies."""
    purposes: frozenset[str] = INFERENCE_ONLY
    onward: frozenset[EntityId] = frozenset()
    """Other entities that may receive the data at the importer's place: sub-processors with access."""
    module: int | None = None
    """Of EU_SCC: 1 to 4."""

    def covers_payload(self, exporter: EntityId, role: Role | None, label: Effective, now_ms: int) -> bool:
        """Whether this pathway is a basis for such a payload of that exporter at that time."""
        return (
            self.valid_from_ms <= now_ms < self.valid_until_ms
            and self.exporter == exporter
            and self.exporter_role is role
            and label.personal is not Personal.UNKNOWN
            and label.personal <= self.personal_max
            and (self.categories == ALL_CATEGORIES or label.categories <= self.categories)
            and label.purpose <= self.purposes
        )

    def covers_place(self, target: Place) -> bool:
        """Whether this pathway names whoever receives the data there, and every country of the place.

        Every place of ours handles payloads on the tenant's behalf: its operator is a processor.
        """
        return (
            self.importer == target.operator.id
            and self.importer_role is Role.PROCESSOR
            and target.recipients() <= {self.importer, *self.onward}
            and target.reach() <= self.countries
        )
