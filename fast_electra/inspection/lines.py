"""What `look.inspect` found, as aligned lines."""

from pathlib import Path
from typing import Any

from fast_electra.inspection.look import Inspected


def to_text(path: Path, found: Inspected, verify: bool) -> str:
    """Return one line for each fact, and at the end what is wrong, or that all is whole."""
    rows = [(found.kind, str(path))]
    for name, value in found.facts.items():
        names = [name, *[""] * len(lines := _lines(value))]  # only the first line of a fact has its name
        rows += zip(names, lines, strict=False)
    whole = "yes, by all hashes" if verify else "yes, by sizes and seals; --verify hashes all contents"
    if found.kind == "export" and "weights" not in found.facts:
        whole = "as far as the size of its weights shows; an export has no hashes"
    rows += [("problem", line) for line in found.problems] or [("whole", whole)]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {line}" for name, line in rows)


def _lines(value: Any) -> list[str]:
    if isinstance(value, dict) and value.keys() == {"hash", "path", "state"}:
        return [f"{_short(value['hash'] or 'hash unknown')}  {_short(value['path'])} ({value['state']})"]
    if isinstance(value, dict):
        entries = [f"{key} {_short(entry)}" for key, entry in value.items() if entry not in (None, "")]
        long = len(entries) > 5 or any(isinstance(entry, dict) for entry in value.values())
        return entries if long or not entries else [", ".join(entries)]
    if isinstance(value, list):
        return [line for entry in value for line in _lines(entry)]
    return [] if value in (None, "") else [_short(value)]


def _short(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:,}" if isinstance(value, int) else f"{value:g}"
    if isinstance(value, dict):
        return ", ".join(_lines(value))
    text = str(value)
    if len(text) in (32, 64) and set(text) <= set("0123456789abcdef"):
        return text[:12]  # a hash
    return text if text.isprintable() else text.encode("unicode_escape").decode()
