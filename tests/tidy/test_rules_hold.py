"""The style guide, run over every file that people write."""

from __future__ import annotations

import pytest

from tests.tidy.rules import EXCEPTIONS, RULES
from tests.tidy.source import PRODUCT, ROOT, Rule, Source, read_sources


@pytest.fixture(scope="module")
def sources() -> list[Source]:
    return read_sources(ROOT)


def findings(rule: Rule, sources: list[Source]) -> list[tuple[str, str]]:
    """The file of each breach, and the breach as a line to click on."""
    return [
        (source.path, f"{source.path}:{line}: {what}")
        for source in sources
        if rule.reads(source.path)
        for line, what in rule.find(source)
    ]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_rule_holds(rule: Rule, sources: list[Source]) -> None:
    broken = [line for path, line in findings(rule, sources) if (rule.name, path) not in EXCEPTIONS]
    assert not broken, "\n".join([f"{rule.sentence}:", *broken])


def test_every_exception_still_excuses_something(sources: list[Source]) -> None:
    needed = {(rule.name, path) for rule in RULES for path, _ in findings(rule, sources)}
    assert EXCEPTIONS.keys() <= needed
    assert all(reason.strip() for reason in EXCEPTIONS.values())


def test_the_rules_read_the_whole_product(sources: list[Source]) -> None:
    for place in PRODUCT:
        on_disk = {path.relative_to(ROOT).as_posix() for path in (ROOT / place).rglob("*.py")}
        assert on_disk <= {source.path for source in sources}


def test_every_folder_of_the_product_is_a_package_with_a_charter() -> None:
    for place in PRODUCT:
        for folder in {path.parent for path in (ROOT / place).rglob("*.py")}:
            assert (folder / "__init__.py").exists(), f"{folder.relative_to(ROOT)} has no __init__.py"
