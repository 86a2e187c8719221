"""What `tidegate up` writes is read back as it was meant, whatever the keys turn out to be."""

from __future__ import annotations

from pathlib import Path

from orchestrator.cli.house import _write_document
from orchestrator.files.document import read_document


def test_a_key_id_that_looks_like_a_number_stays_text(tmp_path: Path) -> None:
    path = tmp_path / "tenants.yaml"
    for text in ("12e456789012", "0x10", "123456789012", "null", "no", "1_000", "0o17", ".inf"):
        _write_document(path, {"id": text, "count": 3, "list": [text], "nothing": {}})
        assert read_document(path).value == {"id": text, "count": 3, "list": [text], "nothing": {}}
