"""Keeps the code tidy: what a reviewer would say each time, said by a test.

Sizes, docstrings, leftovers. Style is ruff's and types are mypy's; who may import whom is import-linter's.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAX_LINES = 450
MAX_TEST_LINES = 700
"""A test file is a list: it may be longer than what has to be understood as a whole."""
PACKAGES = ("fabric", "zk", "deploy", "bench")
CODE = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
TEXTS = sorted(
    path
    for path in (
        *ROOT.glob("*.md"),
        *ROOT.glob("*.toml"),
        *ROOT.glob("*.txt"),
        ROOT / "Makefile",
        *(ROOT / ".ci").iterdir(),
    )
    if path.is_file()
)
MAY_PRINT = ("fabric/cli/", "deploy/cli/", "bench/")
"""Commands talk on standard output; everything else logs."""

UNFINISHED = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X|HA" r"CK)\b")
REGISTRIES = re.compile(
    r"(py"
    r"pi\.org|pythonhosted|npm"
    r"js|registry\.|crates\.io|deb\.debian|maven\.org|ghcr\.io|docker\.io|quay\.io)"
    r"|--(extra-)?index-url|--find-links|--registry"
)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def calls(tree: ast.AST) -> list[tuple[int, str]]:
    """(line, dotted name) of each call of a plain or dotted name."""
    return [(node.lineno, ast.unparse(node.func)) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_there_is_code_to_look_at() -> None:
    assert len(CODE) > 40
    assert len(TESTS) > 10
    assert ROOT / "README.md" in TEXTS


@pytest.mark.parametrize("path", [*CODE, *TESTS], ids=name)
def test_a_file_can_be_read_in_one_go(path: Path) -> None:
    lines = path.read_text().splitlines()
    limit = MAX_TEST_LINES if path in TESTS else MAX_LINES
    assert len(lines) <= limit, f"{len(lines)} lines: split it by what it does"


@pytest.mark.parametrize("path", [path for path in CODE if path.name != "__init__.py" or path.stat().st_size], ids=name)
def test_a_module_opens_with_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), "expected a docstring: the module's theory of operation"


@pytest.mark.parametrize("path", [path for path in TESTS if path.name.startswith("test_")], ids=name)
def test_a_test_file_says_what_it_holds_the_code_to(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize("path", TESTS, ids=name)
def test_no_test_sleeps(path: Path) -> None:
    """A sleep is too long on a fast machine and too short on a slow one: wait for a condition (tests/waiting.py)."""
    found = [line for line, called in calls(ast.parse(path.read_text())) if called in ("time.sleep", "sleep")]
    assert not found, f"sleeps in lines {found}"


@pytest.mark.parametrize("path", [*CODE, *TESTS, *TEXTS], ids=name)
def test_nothing_is_left_for_later(path: Path) -> None:
    found = [number for number, line in enumerate(path.read_text().splitlines(), 1) if UNFINISHED.search(line)]
    assert not found, f"unfinished in lines {found}"


@pytest.mark.parametrize("path", [*CODE, *TESTS, *TEXTS], ids=name)
def test_no_package_registry_is_named(path: Path) -> None:
    """Where packages come from is the machine's own setting."""
    if path == Path(__file__):
        return
    found = [number for number, line in enumerate(path.read_text().splitlines(), 1) if REGISTRIES.search(line)]
    assert not found, f"registries in lines {found}"


@pytest.mark.parametrize("path", CODE, ids=name)
def test_no_debugging_is_left(path: Path) -> None:
    """Processes without a terminal may print for their keeper, saying where to (`file=`); a bare print is debugging."""
    found = [
        (node.lineno, ast.unparse(node.func))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and (
            ast.unparse(node.func) in ("breakpoint", "pdb.set_trace", "pprint", "pprint.pprint")
            or (ast.unparse(node.func) == "print" and not node.keywords and not name(path).startswith(MAY_PRINT))
        )
    ]
    assert not found, f"calls {found}"


@pytest.mark.parametrize("path", [path for path in CODE if name(path).startswith("fabric/roles/")], ids=name)
def test_a_role_is_given_its_randomness(path: Path) -> None:
    """A role may name the type random.Random; a generator of its own would escape the seed of a simulation."""
    uses = {
        ast.unparse(node)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("random.")
    }
    assert uses <= {"random.Random"}
    assert not [called for _, called in calls(ast.parse(path.read_text())) if called == "random.Random"]
