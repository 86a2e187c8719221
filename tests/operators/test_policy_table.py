"""`tidegate policy table`: the matrix of who may send what where, as JSON, as text and as a page."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

from tests.operators.desk import LAW, NOW, TWO_SIDES, Json, change, copy_of, refused, run

VOID = frozenset({"meta", "br", "img", "link", "input", "hr"})


def table(folder: Path, *more: object) -> Json:
    ran = run("policy", "table", folder, "--at", NOW, "--json", *more)
    assert ran.status == 0, ran.err
    return ran.json()


def cell(found: Json, edge: str, origin: str, payload: str, pool: str) -> str:
    """Return the rules that refuse, or nothing."""
    (row,) = (row for row in found["rows"] if (row["edge"], row["origin"], row["payload"]) == (edge, origin, payload))
    one = row["cells"][pool]
    return "" if one["allowed"] else " ".join(one["rules"])


def test_every_edge_origin_and_payload_has_a_row_and_every_pool_a_cell() -> None:
    found = table(LAW)
    assert found["tenant"] is None
    assert found["pools"] == ["cn-river", "de-main", "de-remote", "fr-loire", "sg-harbour", "sg-straits"]
    assert {row["edge"] for row in found["rows"]} == {"edge-de", "edge-sg"}
    assert {row["payload"] for row in found["rows"]} == {
        "general data",
        "personal data",
        "sensitive personal data",
        "important data",
    }
    assert all(list(row["cells"]) == found["pools"] for row in found["rows"])
    names = [(row["edge"], row["origin"], row["payload"]) for row in found["rows"]]
    assert len(set(names)) == len(names)
    # A country for each law: China, Singapore, and one that stands for the EEA.
    assert {"CN", "SG"} <= {row["origin"] for row in found["rows"]}


def test_the_cells_of_a_tenant_without_papers_and_of_one_with() -> None:
    # The country that stands for the EEA is the first of its class.
    nobody, kontor = table(LAW), table(LAW, "--tenant", "kontor")
    (eea,) = {row["origin"] for row in nobody["rows"]} - {"CN", "SG"}
    assert kontor["tenant"] == "kontor"
    for payload, without, held in (
        ("general data", "", ""),
        ("personal data", "EEA-D-13 EEA-D-46", ""),
        ("sensitive personal data", "EEA-D-13 EEA-D-46", "EEA-D-46"),
        ("important data", "TG-NO-GRANT", "TG-NO-GRANT"),
    ):
        assert cell(nobody, "edge-de", eea, payload, "cn-river") == without
        assert cell(kontor, "edge-de", eea, payload, "cn-river") == held
    assert cell(nobody, "edge-de", eea, "sensitive personal data", "de-main") == ""
    assert cell(nobody, "edge-sg", "SG", "personal data", "sg-harbour") == ""
    assert cell(nobody, "edge-sg", "SG", "personal data", "sg-straits") == "SG-D-26"
    # Personal data of China is granted below a threshold only, and the table knows no counts.
    assert cell(nobody, "edge-sg", "CN", "personal data", "sg-harbour") == "TG-NO-GRANT"


def test_allowed_cells_name_their_duties_and_refused_ones_what_is_needed() -> None:
    found = table(LAW, "--tenant", "kontor")
    for row in found["rows"]:
        for one in row["cells"].values():
            assert one["allowed"] or (one["rules"] and not one["obligations"])
            assert not one["allowed"] or not (one["rules"] or one["needs"])
    river = [row["cells"]["cn-river"] for row in found["rows"] if row["payload"] == "general data"]
    assert {duty for one in river if one["allowed"] for duty in one["obligations"]} >= {"retain:P6M"}


def test_the_shipped_law_fits_in_a_table() -> None:
    found = table(TWO_SIDES)
    assert cell(found, "edge-frankfurt", "US", "general data", "cn-guizhou") == ""
    assert "US-DSP-DEFAULT" in cell(found, "edge-frankfurt", "US", "personal data", "cn-guizhou").split()
    assert cell(found, "edge-frankfurt", "US", "personal data", "eu-frankfurt") == ""


class _Balance(HTMLParser):
    """Follows the tags of a page, and remembers its text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_is_well_formed_and_escapes_what_people_wrote(tmp_path: Path) -> None:
    folder = copy_of(LAW, tmp_path / "law")
    needs = "<script>alert('x')</script> & \\\"papers\\\""
    change(folder / "packs" / "cn.yaml", "Nothing that this service offers opens it.", needs)
    change(folder / "packs" / "cn.yaml", "grade: {at_least: core}", "grade: {at_least: important}")
    text = (folder / "packs" / "cn.yaml").read_text(encoding="utf-8")
    change(folder / "packs" / "cn.yaml", text[text.rindex("      - {label: {personal: none, grade: imp") :], PUBLIC)
    page = tmp_path / "page.html"
    ran = run("policy", "table", folder, "--tenant", "kontor", "--html", page, "--at", NOW)
    assert (ran.status, ran.out) == (0, "")
    written = page.read_text(encoding="utf-8")
    assert "<script>" not in written
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; &amp; &quot;papers&quot;" in written
    parsed = _Balance()
    parsed.feed(written)
    parsed.close()
    assert (parsed.open, parsed.wrong) == ([], [])
    assert "script" not in parsed.tags
    assert any("kontor" in word for word in parsed.words)
    found = table(folder, "--tenant", "kontor")
    assert parsed.tags.count("tr") == len(found["rows"]) + 1
    assert parsed.tags.count("td") == len(found["rows"]) * (3 + len(found["pools"]))
    assert "src=" not in written
    assert "href=" not in written


PUBLIC = "      - {label: {personal: none, grade: public}, from: [CN], target: [SG], action: return, expect: not}\n"


def test_the_text_for_people_has_a_line_for_each_row() -> None:
    ran = run("policy", "table", LAW, "--at", NOW)
    assert ran.status == 0
    assert "who may send what where" in ran.out
    assert ran.out.count("important data") >= 4


def test_what_cannot_be_shown_is_one_sentence(tmp_path: Path) -> None:
    assert "--tenant: expected a tenant of the bundle" in refused("policy", "table", LAW, "--tenant", "x", "--at", NOW)
    assert "missing" in refused("policy", "table", "missing")
    page = tmp_path / "no" / "page.html"
    assert f"--html: {page}: No such file" in refused("policy", "table", LAW, "--html", page, "--at", NOW)
    assert "--at: expected a time" in refused("policy", "table", LAW, "--at", "?")
