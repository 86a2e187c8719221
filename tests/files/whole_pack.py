"""One pack as people write it, with every field that there is: text that a test can change in one place."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

import pytest

from orchestrator.files.document import FileError, load_document
from orchestrator.files.domain_error import read_as
from orchestrator.files.pack_shapes import PackDocument
from orchestrator.files.packs import pack_of
from orchestrator.policy.packs import Pack

WHOLE = textwrap.dedent(
    """\
    version: 1
    id: xx-whole
    title: A pack with every field
    topic: transfer
    jurisdictions: [EEA, WIDER-LIST]
    effective_from: 2026-01-01
    effective_until: 2027-01-01
    mode: shadow
    revision: 3
    lists:
      - name: EU-ADEQUATE
        dated: 2026-08-05
        members: [CH, JP]
      - name: WIDER-LIST
        dated: 2026-08-06
        members: [GB]
    rules:
      - id: XX-GRANT
        effect: grant
        when:
          - personal: {at_most: personal}
          - grade: {at_most: general}
          - domestic: {at_most: no}
          - clean: {at_most: raw}
          - critical_infrastructure: {at_most: no}
          - categories: {within: [contact, work]}
          - origin: {avoids: [CN]}
          - located: {within: [EEA, EU-ADEQUATE]}
          - collected: {avoids: [CN, US]}
          - purpose: {within: [inference, billing]}
          - asset: {within: [payload, audit]}
          - processed_in: {within: [EEA, EU-ADEQUATE]}
          - target: {within: [EEA, EU-ADEQUATE]}
          - target_soil: {beyond: [CN]}
          - source: {touches: [EEA]}
          - source_soil: {avoids: [CN]}
          - action: {in: [infer, store]}
          - leg: {in: [edge-pool, sink]}
          - counter: {name: cn_persons_year, below: 100000}
        obligations:
          - retain: P6M
          - prove_no_domestic_input: CN
          - disclose: eu-art-50
          - label: synthetic
        sentence: It may go.
        source: {instrument: A law, article: Art. 1, dated: 2026-01-01}
        confidence: medium
        vectors:
          - label:
              personal: personal
              grade: general
              domestic: no
              clean: raw
              categories: [contact]
              origin: [NO]
              located: [DE]
              collected: [DE]
            from: [DE]
            target: [CH]
            target_access: [JP]
            action: store
            leg: sink
            processed_in: [EU-ADEQUATE]
            counters: {cn_persons_year: 99999}
            critical_infrastructure: false
            expect: holds
          - label: {personal: personal}
            from: [DE]
            target: [CH]
            action: store
            expect: not
      - id: XX-REQUIRE
        effect: require
        when:
          - personal: {at_least: personal}
          - categories: {touches: [health]}
          - origin: {beyond: [CN]}
          - counter: {name: us_health_persons_12m, at_least: 10}
        unless:
          - domestic: {at_most: no}
          - collected: {avoids: [CN]}
          - counter: {name: us_health_persons_12m, below: 1000}
        requires: [{any_of: [eu_scc, eu_bcr]}, eu_tia]
        sentence: Papers are needed.
        needs: Clauses and an assessment.
        source: {instrument: A law, article: Art. 2, dated: 2026-01-01}
        confidence: low
        vectors:
          - label: {personal: personal, categories: [health], origin: [DE]}
            from: [DE]
            target: [CN]
            action: infer
            counters: {us_health_persons_12m: 10}
            expect: holds
          - label: {personal: personal, categories: [health], origin: [DE], domestic: no, collected: [DE]}
            from: [DE]
            target: [CN]
            action: infer
            counters: {us_health_persons_12m: 10}
            expect: not
      - id: XX-OBLIGE
        effect: oblige
        when:
          - asset: {touches: [payload]}
        obligations:
          - notify: eu-13-cn
          - retain: P1Y6M2D
        sentence: People are told.
        source: {instrument: A law, article: Art. 3, dated: 2026-01-01}
        confidence: unconfirmed
        vectors:
          - {label: {}, from: [DE], target: [CN], action: infer, expect: holds}
          - {label: {asset: [audit]}, from: [DE], target: [CN], action: infer, expect: not}
      - id: XX-FORBID
        effect: forbid
        when:
          - purpose: {beyond: [inference]}
        sentence: It does not go.
        source: {instrument: A law, article: Art. 4, dated: 2026-01-01}
        confidence: high
        vectors:
          - {label: {purpose: [finetune]}, from: [DE], target: [CN], action: infer, expect: holds}
          - {label: {}, from: [DE], target: [CN], action: infer, expect: not}
    """
)


@dataclass(frozen=True, slots=True)
class Edit:
    """A text that is there once, or after `after`, and what stands in its place."""

    old: str
    new: str
    after: str = ""

    def apply(self) -> tuple[str, int]:
        """Return the changed pack, and the line of the change, counted from 1."""
        begin = WHOLE.index(self.after)
        at = WHOLE.index(self.old, begin)
        offset = len(self.new) - len(self.new.lstrip("\n "))
        line = WHOLE.count("\n", 0, at) + self.new.count("\n", 0, offset) + 1
        return WHOLE[:at] + self.new + WHOLE[at + len(self.old) :], line


def load_text(text: str) -> Pack:
    """Load a pack as people load it. Raises FileError."""
    return read_as(load_document(text, "packs/xx.yaml"), PackDocument, pack_of)


def refused(text: str) -> FileError:
    """Return the error with which a pack is refused. It is a sentence with file, line and field."""
    with pytest.raises(FileError) as caught:
        load_text(text)
    error = caught.value
    place = f"packs/xx.yaml:{error.line}: " if error.line else "packs/xx.yaml: "
    assert str(error) == f"{place}{error.field}{': ' if error.field else ''}{error.expected}"
    assert error.expected
    return error
