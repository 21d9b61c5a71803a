"""Files and folders that appear whole or not at all, and the hashes of files."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fast_electra.settings import UserError


def file_hash(path: Path) -> str:
    """xxh3-128 of a file's bytes, as 32 hexadecimal digits: finds damage, not forgery."""
    import xxhash  # here: the command line's --help does without it

    state = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            state.update(block)
    return state.hexdigest()


def grant(path: Path) -> None:
    """Gives a file the permissions of any new one: safetensors lets nobody but its owner read what it writes."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


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


@contextmanager
def atomic_folder(output: Path, marker: str, overwrite: bool = False) -> Iterator[Path]:
    """Gives a temporary folder beside `output`, renamed to it at the end, or removed when anything goes wrong.

    Args:
        output: the folder to make; its parents are made too.
        marker: a file that tells a folder of this kind: nothing else is ever overwritten.
        overwrite: replace a folder that exists.

    Raises:
        UserError: when `output` exists and may not be replaced.
    """
    output = Path(output).absolute()
    occupied = output.exists() and (not output.is_dir() or any(output.iterdir()))
    if occupied and not (output / marker).is_file():
        raise UserError(f"{output} exists and holds no {marker}, so it is not replaced: choose another --output")
    if occupied and not overwrite:
        raise UserError(f"{output} exists: choose another --output, or replace it with --overwrite")
    partial = output.with_name(f".{output.name}.fast-electra-partial")
    shutil.rmtree(partial, ignore_errors=True)  # what a killed run left
    partial.mkdir(parents=True)
    try:
        yield partial
        for file in partial.iterdir():
            _sync(file)
        if occupied:
            shutil.rmtree(output)
        partial.rename(output)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _sync(file: Path) -> None:
    """A rename may reach the disk before the contents do: these go first."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
