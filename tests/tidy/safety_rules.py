"""Rules about what code may do: bounds, clocks, settings, and calls that run or unpack what others wrote."""

from __future__ import annotations

import ast
import configparser
import re
from collections.abc import Iterator

from tests.tidy.source import CODE, EVERYTHING, ROOT, Rule, Source, dotted

UNPACKING_MODULES = frozenset({"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"})
RUNNING_CALLS = frozenset(
    {"eval", "exec", "torch.load", "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "os.system"}
)
QUEUES = frozenset({"Queue", "LifoQueue", "PriorityQueue", "SimpleQueue", "JoinableQueue"})
BOUNDED = re.compile(r"# bounded: \S")
TIMED_CALLS = frozenset({"subprocess.run", "subprocess.call", "subprocess.check_call", "subprocess.check_output"})
IMPURE_MODULES = frozenset({"asyncio", "time", "random", "secrets", "uuid", "socket", "threading"})
IMPURE_CALLS = re.compile(
    r"(^|\.)((datetime|date)\.(now|utcnow|today)|uuid[14]|urandom|default_rng|time\.\w+|random\.\w+|perf_counter)$|^open$"
)
# Written in pieces: these places are on the machine where the project was written, and nowhere else.
MACHINE = re.compile("/tmp/" + "lock|/work/" + r"(main|shared|\.library)|/opt/" + r"(wheels|pypi)|\." + "pyenv")


def pure_places() -> tuple[str, ...]:
    """The files and folders that .importlinter calls pure. Raises KeyError when the contract is gone."""
    contracts = configparser.ConfigParser()
    contracts.read(ROOT / ".importlinter", encoding="utf-8")
    modules = contracts["importlinter:contract:pure"]["source_modules"].split()
    places = [module.replace(".", "/") for module in modules]
    return tuple(place + suffix for place in places for suffix in ("/", ".py"))


def _asserts(source: Source) -> Iterator[tuple[int, str]]:
    for node in source.walk():
        if isinstance(node, ast.Assert):
            yield node.lineno, "assert is gone under -O; raise an error"


def _running_what_others_wrote(source: Source) -> Iterator[tuple[int, str]]:
    for node in source.walk():
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            for module in modules:
                if module.partition(".")[0] in UNPACKING_MODULES:
                    yield node.lineno, f"import {module}"
        elif isinstance(node, ast.Call):
            if dotted(node.func) in RUNNING_CALLS:
                yield node.lineno, f"{dotted(node.func)}()"
            for keyword in node.keywords:
                if keyword.arg == "shell" and getattr(keyword.value, "value", True):
                    yield node.lineno, "a shell"


def _bound(node: ast.Call, name: str) -> ast.expr | None:
    """The expression that bounds a queue, or None."""
    keyword, position = ("maxlen", 1) if name == "deque" else ("maxsize", 0)
    for one in node.keywords:
        if one.arg == keyword:
            return one.value
    return node.args[position] if len(node.args) > position else None


def _says_its_bound(source: Source, line: int) -> bool:
    """Tell whether the line, or the one before it, says what bounds a deque that is bounded by other means."""
    return any(BOUNDED.search(text) for text in source.lines[max(line - 2, 0) : line])


def _is_no_bound(node: ast.expr | None) -> bool:
    return node is None or (isinstance(node, ast.Constant) and node.value in (None, 0))


def _unbounded(source: Source) -> Iterator[tuple[int, str]]:
    for node in source.walk():
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func).rpartition(".")[2]
        makes_deque = name == "deque"
        unbounded = name == "SimpleQueue" or _is_no_bound(_bound(node, name))
        excused = makes_deque and _says_its_bound(source, node.lineno)
        if (name in QUEUES or makes_deque) and unbounded and not excused:
            yield node.lineno, f"{name} without a bound"
        # Handed over as a factory, a queue is made without its bound.
        factories = [keyword.value for keyword in node.keywords if keyword.arg == "default_factory"]
        factories += node.args[:1] if name == "defaultdict" else []
        for factory in factories:
            made = dotted(factory).rpartition(".")[2]
            excused = made == "deque" and _says_its_bound(source, factory.lineno)
            if made in QUEUES | {"deque"} and not excused:
                yield factory.lineno, f"{made} without a bound"


def _untimed(source: Source) -> Iterator[tuple[int, str]]:
    for node in source.walk():
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        waits = name in TIMED_CALLS or name.rpartition(".")[2] == "urlopen"
        if waits and not any(keyword.arg == "timeout" for keyword in node.keywords):
            yield node.lineno, f"{name} without a timeout"


def _environment(source: Source) -> Iterator[tuple[int, str]]:
    for node in source.walk():
        if isinstance(node, ast.Attribute) and dotted(node) in ("os.environ", "os.environb", "os.getenv", "os.putenv"):
            yield node.lineno, dotted(node)
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            for alias in node.names:
                if alias.name in ("environ", "environb", "getenv", "putenv"):
                    yield node.lineno, f"from os import {alias.name}"


def _clock_and_chance(source: Source) -> Iterator[tuple[int, str]]:
    for node in source.walk():
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            for module in modules:
                if module.partition(".")[0] in IMPURE_MODULES:
                    yield node.lineno, f"import {module}: time and chance are parameters"
        elif isinstance(node, ast.Call) and IMPURE_CALLS.search(dotted(node.func)):
            yield node.lineno, f"{dotted(node.func)}(): time, chance and files are parameters"


def _machine(source: Source) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(source.lines, 1):
        if (match := MACHINE.search(line)) is not None:
            yield number, f"{match[0]} is a place on one machine"


SAFETY_RULES = (
    Rule("assert", "a condition that matters is an error, not an assertion", _asserts, CODE, ("benchmarks/",)),
    Rule("foreign-code", "nothing runs or unpacks what others wrote", _running_what_others_wrote),
    Rule("bounded-queue", "every queue has a bound", _unbounded, CODE),
    Rule("bounded-wait", "every wait for a program or an address ends", _untimed, EVERYTHING),
    Rule(
        "environment",
        "settings come through orchestrator.config",
        _environment,
        CODE,
        ("orchestrator/config/", "orchestrator/cli/", "scheduler/pools/", "tools/", "benchmarks/", "examples/"),
    ),
    Rule("clock-and-chance", "a pure room knows no clock, chance or file", _clock_and_chance, pure_places()),
    Rule("machine", "nothing names the machine where it was written", _machine, (), python_only=False),
)
