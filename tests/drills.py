"""The table of `make drills`: for each kind of fault, how often it was tried, and how often nothing was lost.

A drill is a test with `@pytest.mark.drill("KIND")`. It counts as one try, or as `record_property("tried", N)` says.
"""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if mark := item.get_closest_marker("drill"):
            item.user_properties.append(("drill", mark.args[0]))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows: dict[str, list[int]] = {}
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.stats.get(outcome, []):
            properties = dict(getattr(report, "user_properties", []))  # a file that cannot be imported has none
            if kind := properties.get("drill"):
                row, tried = rows.setdefault(kind, [0, 0]), properties.get("tried", 1)
                row[0] += tried
                row[1] += tried if outcome == "passed" else 0
    if rows and "drill" in config.option.markexpr:
        terminalreporter.section("drills")
        width = max(map(len, rows))
        total = ("total", [sum(column) for column in zip(*rows.values(), strict=True)])
        terminalreporter.write_line(f"{'kind':{width}}   tried  survived")
        for kind, (tried, survived) in (*sorted(rows.items()), total):
            terminalreporter.write_line(f"{kind:{width}}  {tried:6,}  {survived:8,}")
