"""The files that the tidy rules read, and the form of a rule."""

from __future__ import annotations

import ast
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

PRODUCT = ("orchestrator/", "node_agent/", "scheduler/")
"""What runs in production."""
CODE = (*PRODUCT, "tools/", "benchmarks/", "examples/")
"""Everything that is not a test."""
EVERYTHING = (*CODE, "tests/")

PASSED_OVER = frozenset({".git", ".venv", ".tidegate", "build", "node_modules", "__pycache__"})
TEXT_SUFFIXES = frozenset(
    {".py", ".proto", ".toml", ".yaml", ".yml", ".json", ".md", ".sh", ".txt", ".tpl", ".cfg", ".ini"}
)
TEXT_NAMES = frozenset({"Makefile", "Dockerfile", ".importlinter", ".gitignore", ".dockerignore", "NOTICE", "run"})
TEXT_SIZE_MAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Source:
    """One file: its path from the root with slashes, its text, and its tree when it is Python."""

    path: str
    text: str = field(repr=False)
    tree: ast.Module = field(init=False, repr=False)

    def __post_init__(self) -> None:
        tree = ast.parse(self.text) if self.path.endswith(".py") else ast.Module(body=[], type_ignores=[])
        object.__setattr__(self, "tree", tree)

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    def walk(self) -> Iterator[ast.AST]:
        return ast.walk(self.tree)

    def functions(self) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
        for node in self.walk():
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield node


Find = Callable[[Source], Iterator[tuple[int, str]]]
"""Yields the line and what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: a name, the sentence that it holds, the files that it reads, and how it finds what breaks it."""

    name: str
    sentence: str
    find: Find
    where: tuple[str, ...] = EVERYTHING
    """Prefixes of paths."""
    but_not: tuple[str, ...] = ()
    """Prefixes of paths that the rule passes over; a name without a slash stands for that file anywhere."""
    python_only: bool = True

    def reads(self, path: str) -> bool:
        """Tell whether this rule applies to a file."""
        if self.python_only and not path.endswith(".py"):
            return False
        name = path.rpartition("/")[2]
        passed_over = any(path.startswith(place) if "/" in place else name == place for place in self.but_not)
        return not passed_over and (not self.where or path.startswith(self.where))


def is_generated(path: str) -> bool:
    """Tell whether protoc wrote the file."""
    return path.startswith("protos/") and "_pb2" in path


def read_sources(root: Path) -> list[Source]:
    """Read every text file of a checkout that people write."""
    found: list[Source] = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(
            name for name in subfolders if name not in PASSED_OVER and not name.endswith(("_cache", ".egg-info"))
        )
        for name in sorted(names):
            file = Path(folder, name)
            path = file.relative_to(root).as_posix()
            if file.suffix not in TEXT_SUFFIXES and name not in TEXT_NAMES:
                continue
            if is_generated(path) or file.is_symlink() or file.stat().st_size > TEXT_SIZE_MAX_BYTES:
                continue
            found.append(Source(path, file.read_text(encoding="utf-8")))
    return found


def dotted(node: ast.AST) -> str:
    """The dotted name that an expression spells, or an empty text: `asyncio.Queue[int]` is `asyncio.Queue`."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        prefix = dotted(node.value)
        return f"{prefix}.{node.attr}" if prefix else ""
    if isinstance(node, ast.Subscript):
        return dotted(node.value)
    return ""
