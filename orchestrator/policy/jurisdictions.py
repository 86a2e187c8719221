"""Jurisdictions: ISO 3166-1 alpha-2 codes that are assigned, and the groups that packs may name."""

from __future__ import annotations

from typing import NewType

Jurisdiction = NewType("Jurisdiction", str)

# ISO 3166-1:2020 with updates to 2026, officially assigned codes.
_ASSIGNED = """
AD AE AF AG AI AL AM AO AQ AR AS AT AU AW AX AZ BA BB BD BE BF BG BH BI BJ BL BM BN BO BQ BR BS BT BV BW BY BZ
CA CC CD CF CG CH CI CK CL CM CN CO CR CU CV CW CX CY CZ DE DJ DK DM DO DZ EC EE EG EH ER ES ET FI FJ FK FM FO FR
GA GB GD GE GF GG GH GI GL GM GN GP GQ GR GS GT GU GW GY HK HM HN HR HT HU ID IE IL IM IN IO IQ IR IS IT JE JM JO JP
KE KG KH KI KM KN KP KR KW KY KZ LA LB LC LI LK LR LS LT LU LV LY MA MC MD ME MF MG MH MK ML MM MN MO MP MQ MR MS MT
MU MV MW MX MY MZ NA NC NE NF NG NI NL NO NP NR NU NZ OM PA PE PF PG PH PK PL PM PN PR PS PT PW PY QA RE RO RS RU RW
SA SB SC SD SE SG SH SI SJ SK SL SM SN SO SR SS ST SV SX SY SZ TC TD TF TG TH TJ TK TL TM TN TO TR TT TV TW TZ
UA UG UM US UY UZ VA VC VE VG VI VN VU WF WS YE YT ZA ZM ZW
"""

ASSIGNED: frozenset[Jurisdiction] = frozenset(Jurisdiction(code) for code in _ASSIGNED.split())

# EU member states and the EEA EFTA states (EEA Agreement art. 126).
_EEA = "AT BE BG CY CZ DE DK EE ES FI FR GR HR HU IE IS IT LI LT LU LV MT NL NO PL PT RO SE SI SK"
EEA: frozenset[Jurisdiction] = frozenset(Jurisdiction(code) for code in _EEA.split())

GROUPS: dict[str, frozenset[Jurisdiction]] = {"EEA": EEA}
"""Names that a pack may use in place of a list of codes."""


def parse_jurisdiction(text: str) -> Jurisdiction:
    """Return the code, or raise ValueError when it is not an assigned ISO 3166-1 alpha-2 code in capitals."""
    if text not in ASSIGNED:
        raise ValueError("expected an assigned ISO 3166-1 alpha-2 code in capitals, such as DE")
    return Jurisdiction(text)


def expand(names: tuple[str, ...]) -> frozenset[Jurisdiction]:
    """Return the codes behind a list of codes and group names. Raises ValueError on an unknown name."""
    found: set[Jurisdiction] = set()
    for name in names:
        if name in GROUPS:
            found |= GROUPS[name]
        else:
            found.add(parse_jurisdiction(name))
    return frozenset(found)
