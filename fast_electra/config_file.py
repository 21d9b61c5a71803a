"""A config file as it was written: JSON with overrides, before anything is checked or resolved."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fast_electra.settings import UserError


def read(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return the file's JSON with the overrides.

    Raises:
        UserError: there is no such file, it is not valid JSON, or an override is not `KEY=VALUE`.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        section: dict[str, Any] = {}
        for key, value in pairs:
            if key in section:
                raise UserError(f"{path}: the key {key!r} occurs twice in one section; remove one of them")
            section[key] = value
        return section

    try:
        # Of bytes, `json` recognises a byte order mark and UTF-16 itself.
        tree = json.loads(Path(path).read_bytes(), object_pairs_hook=unique, parse_int=_number)
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"there is no config file {path}; see ds_configs/ for those that ship") from None
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path} must hold one JSON object")
    for override in overrides:
        _override(tree, override)
    return tree


def _number(digits: str) -> int | float:
    """Return a whole number, or infinity for one that no float can hold: every check then refuses it."""
    return int(digits) if len(digits) < 300 else float(digits)


def _override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    *sections, name = key.strip().split(".")
    if not equals or not all([*sections, name]):
        raise UserError(f"--set {override}: write KEY=VALUE, e.g. --set fast_electra.curriculum.rate=0.3")
    try:
        value = json.loads(text, parse_int=_number)
    except (ValueError, RecursionError):
        value = text
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise UserError(f"--set {override}: {section} is a value, not a section")
    tree[name] = value
