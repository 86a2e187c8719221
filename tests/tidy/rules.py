"""Every tidy rule, and the exceptions: each by file and name, with the reason."""

from __future__ import annotations

from tests.tidy.safety_rules import SAFETY_RULES
from tests.tidy.shape_rules import SHAPE_RULES
from tests.tidy.source import Rule

RULES: tuple[Rule, ...] = (*SHAPE_RULES, *SAFETY_RULES)

EXCEPTIONS: dict[tuple[str, str], str] = {
    ("foreign-code", "tests/config/test_secrets_stay_secret.py"): "shows that a secret refuses to be pickled",
    ("foreign-code", "tests/session/test_mutants.py"): "compiles broken copies of our own methods",
    ("idle-test", "tests/config/test_secrets_stay_secret.py"): "one test gives files away, which only root can",
    ("machine", "tests/tidy/test_rules_fire.py"): "holds the bad examples",
    ("unfinished", "tests/tidy/test_rules_fire.py"): "holds the bad examples",
    ("unfinished", "tests/tidy/shape_rules.py"): "holds the words that it looks for",
}
"""(rule, file): reason. An exception that no longer excuses anything is a fault too."""
