"""Folders that appear whole or not at all, and the hashes of files."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fast_electra.settings import UserError

_BLOCK = 2**22


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


def file_hash(file: Path) -> str:
    """The xxh3-128 of a file's contents, in hexadecimal: it finds accidents, not forgeries."""
    import xxhash

    digest = xxhash.xxh3_128()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
