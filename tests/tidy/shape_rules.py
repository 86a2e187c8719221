"""Rules about the shape of files and functions, and about what they must say of themselves."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from tests.tidy.source import CODE, PRODUCT, Rule, Source

FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70
CATCH_ALLS_MAX = 2
"""Per module: one for a task of its own, one round code that the caller handed in."""
CATCH_ALL = frozenset({"Exception", "BaseException"})
OUTERMOST = re.compile(r"#.*\boutermost: \S")
FORBIDDEN_NAMES = frozenset({"util", "utils", "common", "helper", "helpers", "base", "misc"})
IDLE = frozenset({"skip", "skipif", "xfail", "importorskip", "skipTest"})
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")


def _long_files(source: Source) -> Iterator[tuple[int, str]]:
    if len(source.lines) > FILE_LINES_MAX:
        yield 1, f"{len(source.lines)} lines, at most {FILE_LINES_MAX}"


def _long_functions(source: Source) -> Iterator[tuple[int, str]]:
    for node in source.functions():
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        if lines > FUNCTION_LINES_MAX:
            yield node.lineno, f"{node.name} has {lines} lines, at most {FUNCTION_LINES_MAX}"


def _globals(source: Source) -> Iterator[tuple[int, str]]:
    for node in source.walk():
        if isinstance(node, ast.Global):
            yield node.lineno, f"global {', '.join(node.names)}"


def _star_imports(source: Source) -> Iterator[tuple[int, str]]:
    for node in source.walk():
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
            yield node.lineno, f"from {node.module} import *"


def _catches_all(node: ast.AST) -> bool:
    if isinstance(node, ast.ExceptHandler):
        last = node.body[-1]
        if isinstance(last, ast.Raise) and last.exc is None:
            # What cleans up and raises the same error on swallows nothing.
            return False
        caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
        return any(one is None or getattr(one, "id", None) in CATCH_ALL for one in caught)
    if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "suppress":
        return any(getattr(one, "id", None) in CATCH_ALL for one in node.args)
    return False


def _catch_alls(source: Source) -> Iterator[tuple[int, str]]:
    marked = 0
    for node in source.walk():
        if not _catches_all(node):
            continue
        line = getattr(node, "lineno", 1)
        if OUTERMOST.search(source.lines[line - 1]) is None:
            yield line, "catches everything, without `# outermost: reason`"
            continue
        marked += 1
        if marked > CATCH_ALLS_MAX:
            yield line, f"more than {CATCH_ALLS_MAX} outermost handlers in one module"


def _undescribed(source: Source) -> Iterator[tuple[int, str]]:
    if source.text.strip() and not (ast.get_docstring(source.tree) or "").strip():
        yield 1, "no module docstring"


def _charters(source: Source) -> Iterator[tuple[int, str]]:
    if source.path.endswith("/__init__.py"):
        words = ast.get_docstring(source.tree) or ""
        for part in ("Lives here: ", "Never here: "):
            if part not in words:
                yield 1, f"the charter does not say `{part.strip()}`"


def _return_annotations(source: Source) -> Iterator[tuple[int, str]]:
    for node in source.functions():
        if node.returns is None:
            yield node.lineno, f"{node.name} does not say what it returns"


def _prints(source: Source) -> Iterator[tuple[int, str]]:
    for node in source.walk():
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("print", "pprint"):
            yield node.lineno, f"{node.func.id}()"


def _unfinished(source: Source) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(source.lines, 1):
        if (match := UNFINISHED.search(line)) is not None:
            yield number, match[0]
    for node in source.functions():
        body = [one for one in node.body if not (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant))]
        if len(body) == 1 and isinstance(body[0], ast.Raise) and "NotImplementedError" in ast.dump(body[0]):
            yield node.lineno, f"{node.name} is not implemented"


def _forbidden_names(source: Source) -> Iterator[tuple[int, str]]:
    for part in source.path.removesuffix(".py").split("/"):
        if part in FORBIDDEN_NAMES:
            yield 1, f"a module named `{part}` says nothing"


def _tests_that_do_not_test(source: Source) -> Iterator[tuple[int, str]]:
    for node in source.walk():
        if isinstance(node, ast.Attribute | ast.Name):
            name = node.attr if isinstance(node, ast.Attribute) else node.id
            if name in IDLE:
                yield node.lineno, f"{name}: a test runs or does not exist"
        if isinstance(node, ast.Assert) and isinstance(node.test, ast.Constant) and node.test.value:
            yield node.lineno, "an assertion that cannot fail"
    for function in source.functions():
        checks = (ast.Assert, ast.With, ast.AsyncWith, ast.Raise, ast.Call)
        if function.name.startswith("test_") and not any(isinstance(node, checks) for node in ast.walk(function)):
            yield function.lineno, f"{function.name} checks nothing"


SHAPE_RULES = (
    Rule("file-length", f"a file has at most {FILE_LINES_MAX} lines", _long_files),
    Rule("function-length", f"a function has at most {FUNCTION_LINES_MAX} lines", _long_functions),
    Rule("global", "no function rebinds a module's name", _globals),
    Rule("star-import", "every imported name is written out", _star_imports),
    Rule("catch-all", "only the outermost loop of a task catches everything, and says why", _catch_alls),
    Rule("module-docstring", "every module says what it is", _undescribed),
    Rule("charter", "every package says what lives there and what never does", _charters, (*PRODUCT, "protos/")),
    Rule("return-annotation", "every function says what it returns", _return_annotations),
    Rule(
        "print",
        "only programs for a terminal print",
        _prints,
        CODE,
        ("orchestrator/cli/", "tools/", "benchmarks/", "examples/", "__main__.py"),
    ),
    Rule("unfinished", "nothing is left for later", _unfinished),
    Rule("module-name", "a module is named after what it holds", _forbidden_names),
    Rule("idle-test", "every test runs and can fail", _tests_that_do_not_test, ("tests/",)),
)
