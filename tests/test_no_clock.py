"""No test measures time: machines differ threefold, and busy ones stop for seconds."""

import ast
from pathlib import Path

TESTS = Path(__file__).parent
CLOCKS = {"time", "monotonic", "perf_counter", "process_time", "thread_time"}


def reads_a_clock(node: ast.AST) -> bool:
    match node:
        case ast.Call(func=ast.Attribute(value=ast.Name("time"), attr=name)):
            return name.removesuffix("_ns") in CLOCKS
        case ast.ImportFrom(module="time", names=names):
            return any(name.name.removesuffix("_ns") in CLOCKS for name in names)
    return False


def test_only_what_waits_reads_a_clock():
    """Use its Clock for code that reads one, and its wait_until for what happens in the end."""
    readers = [
        f"{path.relative_to(TESTS)}:{node.lineno}"
        for path in sorted(TESTS.rglob("*.py"))
        if path != TESTS / "clock.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if reads_a_clock(node)
    ]
    assert readers == []
