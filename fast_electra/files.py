"""Atomic files and folders, the hashes of files, and JSON files that are read into a settings class."""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from fast_electra.settings import Settings, UserError

S = TypeVar("S", bound=Settings)


def file_hash(path: Path) -> str:
    """Return the xxh3-128 of a file's bytes as 32 hexadecimal digits. It finds damage, not forgery."""
    import xxhash  # here, because the command line's --help does without it

    state = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            state.update(block)
    return state.hexdigest()


class FileRecord(Settings):
    """One file of a folder: its name, its size in bytes, and its xxh3-128."""

    name: str
    size: int
    hash: str

    @classmethod
    def of(cls, path: Path) -> "FileRecord":
        """Return the record of a file that exists."""
        return cls(name=path.name, size=path.stat().st_size, hash=file_hash(path))


def check_files(folder: Path, records: Sequence[FileRecord], remedy: str, verify: bool) -> None:
    """Compare the files of a folder with the records of its manifest.

    Args:
        folder: the folder that holds the files.
        records: what the manifest says about them.
        remedy: what a user should do whose files differ.
        verify: also read and hash all contents. Without it only the sizes are checked (for all ranks but one).

    Raises:
        UserError: a file is missing, truncated or altered; the message names it.
    """
    paths = [folder / record.name for record in records]
    for path, record in zip(paths, records, strict=True):
        if not path.is_file():
            raise UserError(f"{path} is missing; {remedy}")
        if (size := path.stat().st_size) != record.size:
            raise UserError(f"{path} has {size:,} bytes where the manifest says {record.size:,}; {remedy}")
    if verify:
        with ThreadPoolExecutor(max_workers=8) as pool:
            for path, record, found in zip(paths, records, pool.map(file_hash, paths), strict=True):
                if found != record.hash:
                    raise UserError(f"{path} was altered (its hash is not that of the manifest); {remedy}")


def read_settings(path: Path, kind: type[S], missing: str, remedy: str) -> S:
    """Read a JSON file into a settings class.

    Args:
        path: the file.
        kind: the class.
        missing: message of the error where there is no such file.
        remedy: what a user should do whose file is damaged.

    Raises:
        UserError: the file is missing, cannot be read, or does not fit the class.
    """
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(missing) from None
    except ValidationError as error:
        first = error.errors()[0]
        reason = ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
    except (OSError, UnicodeDecodeError) as error:
        reason = str(error)
    raise UserError(f"{path} cannot be read ({reason}); {remedy}")


def grant(path: Path) -> None:
    """Give a file the permissions of any new one, because safetensors lets only the owner read what it writes."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def sync(path: Path) -> None:
    """Wait until the bytes of a file, or the names in a folder, are on the disk. A rename alone does not wait."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError:
        if not path.is_dir():  # not every file system can sync a folder
            raise


def sync_folder(folder: Path) -> None:
    """Wait until all that a folder holds is on the disk, subfolders included."""
    for path in (*folder.rglob("*"), folder):
        sync(path)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give the name of a file to write beside `path`. It is synced and replaces `path` unless the body fails."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically: a reader sees the old file or the new one, never a half."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically. A number that is not finite raises a ValueError."""
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
            sync(file)
        if occupied:
            shutil.rmtree(output)
        partial.rename(output)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
