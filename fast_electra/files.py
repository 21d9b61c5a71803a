"""Files that are either whole or not there: hashes, and writes that replace in one step."""

import json
import os
from pathlib import Path
from typing import Any

import xxhash


def file_hash(path: Path) -> str:
    """xxh3-128 of a file's bytes, as 32 hexadecimal digits: finds damage, not forgery."""
    state = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            state.update(block)
    return state.hexdigest()


def write_text(path: Path, text: str) -> None:
    """Writes a file beside its place, syncs it, and moves it there: readers see the old or the new one, never half."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
