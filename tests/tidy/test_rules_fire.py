"""Every tidy rule finds what it is there for, and passes over what is right."""

from __future__ import annotations

import textwrap

import pytest

from tests.tidy.rules import RULES
from tests.tidy.safety_rules import pure_places
from tests.tidy.source import Rule, Source

PLACE = "orchestrator/wire/example.py"
LONG_FUNCTION = "def long() -> None:\n" + "    step()\n" * 70
SHORT_FUNCTION = "def short() -> None:\n" + "    step()\n" * 69
MARK = "mark"

BAD: dict[str, tuple[str | tuple[str, str], ...]] = {
    "file-length": ("x = 1\n" * 501,),
    "function-length": (LONG_FUNCTION, "class A:\n" + textwrap.indent(LONG_FUNCTION.replace("def", "async def"), "  ")),
    "global": ("def f() -> None:\n    global x\n    x = 1\n",),
    "star-import": ("from os import *\n",),
    "catch-all": (
        "try:\n    f()\nexcept:\n    pass\n",
        "try:\n    f()\nexcept Exception:\n    pass\n",
        "try:\n    f()\nexcept (OSError, BaseException) as error:\n    log(error)\n",
        "try:\n    f()\nexcept* Exception:\n    pass\n",
        "try:\n    f()\nexcept Exception:  # outermost:\n    pass\n",
        "try:\n    f()\nexcept Exception as error:\n    if error:\n        raise\n    g()\n",
        "try:\n    f()\nexcept Exception:  # outermost: of a task\n    pass\n" * 3,
        "with contextlib.suppress(Exception):\n    f()\n",
    ),
    "module-docstring": ("x = 1\n", '""" """\n'),
    "charter": (
        ("orchestrator/wire/__init__.py", '"""Messages."""\n'),
        ("scheduler/__init__.py", '"""Messages.\n\nLives here: much.\n"""\n'),
        ("node_agent/new/__init__.py", ""),
    ),
    "return-annotation": ("def f(): ...\n", "class A:\n    def __init__(self, x: int):\n        self.x = x\n"),
    "print": ("print('x')\n", ("scheduler/intake/example.py", "def f() -> None:\n    print(1)\n")),
    "unfinished": (
        "# TODO: later\n",
        "x = 1  # FIXME\n",
        '"""XXX"""\n',
        "# HACK round a bug\n",
        'def f() -> None:\n    """Do."""\n    raise NotImplementedError\n',
        "def f() -> None:\n    raise NotImplementedError('later')\n",
    ),
    "module-name": (
        ("orchestrator/wire/utils.py", "x = 1\n"),
        ("orchestrator/common/place.py", "x = 1\n"),
        ("tests/helpers.py", "x = 1\n"),
        ("scheduler/base.py", "x = 1\n"),
        ("node_agent/misc/__init__.py", ""),
    ),
    "idle-test": (
        ("tests/a/test_a.py", f"@pytest.{MARK}.skip(reason='x')\ndef test_a() -> None:\n    assert f()\n"),
        ("tests/a/test_a.py", "@mark.skipif(X, reason='x')\ndef test_a() -> None:\n    assert f()\n"),
        ("tests/a/test_a.py", "@mark.xfail\ndef test_a() -> None:\n    assert f()\n"),
        ("tests/a/test_a.py", "from pytest import skip\ndef test_a() -> None:\n    skip('x')\n"),
        ("tests/a/test_a.py", "from pytest import importorskip\nray = importorskip('ray')\n"),
        ("tests/a/test_a.py", "def test_a() -> None:\n    f()\n    assert 1\n"),
        ("tests/a/test_a.py", "def test_a() -> None:\n    x = 1\n"),
    ),
    "assert": ("def f(x: int) -> None:\n    assert x > 0\n", ("tools/example.py", "assert x\n")),
    "foreign-code": (
        "eval('1')\n",
        "exec(text)\n",
        "import pickle\n",
        "from marshal import loads\n",
        "import shelve\n",
        "import cloudpickle.compat\n",
        "torch.load(path)\n",
        "yaml.load(text, Loader=Loader)\n",
        "os.system('ls')\n",
        "subprocess.run('ls', shell=True, timeout=1)\n",
    ),
    "bounded-queue": (
        "asyncio.Queue()\n",
        "asyncio.Queue[int](maxsize=0)\n",
        "queue.Queue(0)\n",
        "queue.SimpleQueue()\n",
        "multiprocessing.JoinableQueue()\n",
        "Queue[bytes]()\n",
        "deque()\n",
        "collections.deque([1], None)\n",
        "deque(maxlen=None)\n",
        "deque()  # bounded:\n",
        "asyncio.Queue()  # bounded: a queue has a bound of its own\n",
        "x: deque[int] = field(default_factory=deque)\n",
        "x = defaultdict(asyncio.Queue)\n",
    ),
    "bounded-wait": (
        "subprocess.run(['ls'])\n",
        "subprocess.check_output(['ls'], text=True)\n",
        "urllib.request.urlopen(address)\n",
    ),
    "environment": (
        "os.environ['X']\n",
        "os.getenv('X')\n",
        "from os import environ\n",
        ("node_agent/example.py", "os.environ.get('X')\n"),
        ("scheduler/intake/example.py", "child = dict(os.environ)\n"),
    ),
    "clock-and-chance": (
        ("orchestrator/policy/example.py", "import time\n"),
        ("orchestrator/placement/example.py", "import random\n"),
        ("orchestrator/ledger/example.py", "from uuid import uuid4\n"),
        ("orchestrator/evidence/example.py", "datetime.now(UTC)\n"),
        ("orchestrator/evidence/example.py", "datetime.datetime.utcnow()\n"),
        ("orchestrator/policy/deep/example.py", "date.today()\n"),
        ("orchestrator/placement/example.py", "numpy.random.default_rng()\n"),
        ("orchestrator/wire/session_edge.py", "from asyncio import sleep\n"),
        ("orchestrator/policy/example.py", "open('x')\n"),
        ("orchestrator/policy/example.py", "os.urandom(8)\n"),
    ),
    "machine": (
        "# see /work/main/x\n",
        "PYTHON = '/tmp/lock/v/bin/python'\n",
        ("requirements/lock.txt", "--find-links /opt/wheels\n"),
        ("Makefile", "PYTHON := /root/.pyenv/shims/python3.11\n"),
        ("docs/page.md", "Read /work/shared/DESIGN.md.\n"),
    ),
}

GOOD: dict[str, tuple[str | tuple[str, str], ...]] = {
    "file-length": ("x = 1\n" * 500,),
    "function-length": (SHORT_FUNCTION,),
    "global": ("x = 1\n",),
    "star-import": ("from os import path\n",),
    "catch-all": (
        "try:\n    f()\nexcept (OSError, ValueError):\n    pass\n",
        "try:\n    f()\nexcept Exception:  # noqa: BLE001  # outermost: of the task that serves one edge\n    pass\n",
        "try:\n    f()\nexcept BaseException:\n    close()\n    raise\n",
        "with contextlib.suppress(OSError):\n    f()\n",
    ),
    "module-docstring": ('"""What it is."""\nx = 1\n', ("tests/a/__init__.py", "")),
    "charter": (("orchestrator/wire/__init__.py", '"""Messages.\n\nLives here: a.\nNever here: b.\n"""\n'),),
    "return-annotation": ("def f() -> None: ...\n", "f = lambda: 1\n"),
    "print": (
        "log.info('x')\n",
        ("orchestrator/cli/example.py", "print(1)\n"),
        ("scheduler/__main__.py", "print(1)\n"),
    ),
    "unfinished": (
        "# A method, not a hack.\n",
        "class A:\n    def f(self) -> None:\n        if self:\n            raise NotImplementedError\n        g()\n",
    ),
    "module-name": (("orchestrator/wire/commonwealth.py", "x = 1\n"),),
    "idle-test": (("tests/a/test_a.py", "def test_a() -> None:\n    assert f()\n"),),
    "assert": (
        "if x < 0:\n    raise ValueError(x)\n",
        ("tests/a/test_a.py", "assert x\n"),
        ("benchmarks/a.py", "assert x\n"),
    ),
    "foreign-code": ("model.eval()\n", "yaml.safe_load(text)\n", "subprocess.run(['ls'], shell=False, timeout=1)\n"),
    "bounded-queue": (
        "asyncio.Queue(maxsize=LIMIT)\n",
        "asyncio.Queue[int](16)\n",
        "deque(maxlen=5)\n",
        "deque(items, 5)\n",
        "x: deque[int] = deque()  # bounded: by credit\n",
        "# bounded: by credit\nx: deque[int] = deque()\n",
        "x: deque[int] = field(default_factory=deque)  # bounded: by credit\n",
        "defaultdict(list)\n",
    ),
    "bounded-wait": ("subprocess.run(['ls'], timeout=5)\n", "urlopen(address, timeout=5)\n"),
    "environment": (
        "settings.port\n",
        ("orchestrator/config/example.py", "os.environ['X']\n"),
        ("scheduler/pools/example.py", "os.environ['RAY_X'] = '1'\n"),
    ),
    "clock-and-chance": (
        ("orchestrator/policy/example.py", "from datetime import datetime\nlater = now + timedelta(days=1)\n"),
        ("orchestrator/wire/channels.py", "import time\n"),
        ("orchestrator/policy/example.py", "bundle.open(x)\n"),
    ),
    "machine": ("# see docs/design\n", ("helm/values.yaml", "path: /tmp/tidegate\n")),
}


def source_of(example: str | tuple[str, str]) -> Source:
    path, text = (PLACE, example) if isinstance(example, str) else example
    return Source(path, text)


def breaks(rule: Rule, source: Source) -> list[tuple[int, str]]:
    return list(rule.find(source)) if rule.reads(source.path) else []


def test_every_rule_has_examples_of_both_kinds() -> None:
    names = {rule.name for rule in RULES}
    assert len(names) == len(RULES)
    assert BAD.keys() == GOOD.keys() == names


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_rule_fires_when_broken(rule: Rule) -> None:
    for example in BAD[rule.name]:
        assert breaks(rule, source_of(example)), f"{rule.name} passed over {example!r}"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_rule_passes_over_what_is_right(rule: Rule) -> None:
    for example in GOOD[rule.name]:
        assert not breaks(rule, source_of(example)), f"{rule.name} fired on {example!r}"


def test_the_pure_places_are_those_of_the_import_contract() -> None:
    expected = {"orchestrator/policy/", "orchestrator/placement/", "orchestrator/wire/session_edge.py"}
    assert expected <= set(pure_places())
