"""Atomic files and folders, the hashes of files, and JSON files that are sealed and read into a settings class."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import psutil
from pydantic import ValidationError

from fast_electra.locks import only_writer
from fast_electra.settings import Settings, UserError

S = TypeVar("S", bound=Settings)
CHECKSUM = "checksum"  # key of a sealed JSON file, see `seal`


def file_hash(path: Path) -> str:
    """Return the xxh3-128 of a file's bytes as 32 hexadecimal digits. It finds damage, not forgery."""
    import xxhash  # here, because the command line's --help does without it

    with path.open("rb") as file:
        digest: str = hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()
    return digest


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
    """Compare the files of a folder with the records of its manifest: their sizes, and their contents if `verify`.

    Raises:
        UserError: a file is missing, truncated or altered. The message names it and ends with `remedy`.
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
    """Read a JSON file, sealed or not, into a settings class.

    Raises:
        UserError: the file is not there, which the message `missing` says. Or it cannot be read, was altered, or does
            not fit the class; that message ends with `remedy`.
    """
    try:
        return kind.model_validate_json(json.dumps(read_json(path)))
    except FileNotFoundError:
        raise UserError(missing) from None
    except ValidationError as error:
        first = error.errors()[0]
        reason = ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
    except RecursionError:
        reason = "it is nested too deeply"
    except (OSError, ValueError) as error:
        reason = str(error)
    raise UserError(f"{path} cannot be read ({reason}); {remedy}")


def read_json(path: Path) -> Any:
    """Return what a JSON file holds, without its seal. Files of older versions have none.

    Raises:
        ValueError: the file is not JSON, or its content is not what was sealed.
    """
    value = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(value, dict) and CHECKSUM in value and value.pop(CHECKSUM) != seal(value):
        raise ValueError("it was altered: its checksum differs")
    return value


def seal(value: Any) -> str:
    """Return the xxh3-128 of a value as `write_sealed` would write it without a seal."""
    import xxhash  # here, because the command line's --help does without it

    return str(xxhash.xxh3_128_hexdigest(_as_ascii(value).encode()))


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


def forget(folder: Path) -> None:
    """Drop the synced files of a folder from memory, so that who reads them next reads the disk."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give the name of a file to write beside `path`. It replaces `path` unless the body fails, and is synced."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        if error.errno and error.filename in (None, str(temporary)):
            error.filename = str(path)  # a full disk names no file
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder in one step, and what is left of an earlier removal: it is whole or not there."""
    gone = folder.with_name(f".{folder.name}.gone")
    shutil.rmtree(gone, ignore_errors=True)
    with suppress(FileNotFoundError):
        folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def clear_leftovers(folder: Path) -> None:
    """Remove the temporary files of `atomic_file` in a folder whose process is gone."""
    for path in folder.glob(".*.*"):
        left = re.fullmatch(r"\..+\.(\d{1,9})(\.partial)?", path.name)
        if left and path.is_file() and not psutil.pid_exists(int(left[1])):
            path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically: a reader sees the old file or the new one, never a half."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically. A number that is not finite raises a ValueError."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """Write a value as `write_json` does, with a checksum: whoever reads the file finds any change of the content."""
    write_text(path, _as_ascii(value | {CHECKSUM: seal(value)}))


def _as_ascii(value: Any) -> str:
    return json.dumps(value, indent=1, allow_nan=False) + "\n"  # ASCII: names of files may hold lone surrogates


@contextmanager
def atomic_folder(output: Path, marker: str, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary folder to write, which takes the place of `output` after the body.

    Everything that can fail is tried before the body runs. An error in the body removes the temporary folder. The old
    folder stays until the new one is in place. A finished folder is never removed. Only a folder that holds a file
    `marker` is ever replaced. Where `output` is a link, the folder that it names is meant. Beside `output` are:

        .NAME.fast-electra-partial   the folder that is being written
        .NAME.fast-electra-new       a finished folder that is not yet in place
        .NAME.fast-electra-old       the old folder, about to be removed
        .NAME.fast-electra-lock      the lock of the process that writes

    After a process was killed, the next call puts the finished folder in place, or else the old one back.

    Raises:
        UserError: `output` exists and may not be replaced, cannot be replaced, or another process is writing it.
    """
    place = _Place(Path(os.path.realpath(output)), marker, overwrite)
    with place.locked():
        place.prepare()
        try:
            yield place.partial
            sync_folder(place.partial)
        except BaseException:
            shutil.rmtree(place.partial, ignore_errors=True)
            raise
        place.fill()


class _Place:
    """The place of one folder, and what `atomic_folder` keeps beside it."""

    def __init__(self, target: Path, marker: str, overwrite: bool) -> None:
        self.target, self.marker, self.overwrite = target, marker, overwrite
        self.partial, self.new, self.old, self.lock = (
            target.parent / f".{target.name}.fast-electra-{what}" for what in ("partial", "new", "old", "lock")
        )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes away. The parent folder is made."""
        with ExitStack() as stack:
            try:
                self.target.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(only_writer(self.lock, self.target, "choose another output"))
            except OSError as error:
                raise self._cannot_be_written(error) from None
            yield

    def prepare(self) -> None:
        """Repair what a killed process left, refuse what cannot work, and make the temporary folder."""
        try:
            left = self.new if self.new.exists() else self.old
            if left.exists() and not self._occupied():
                left.rename(self.target)
            self._check()
            for stale in (self.partial, self.old):
                if stale.exists():
                    shutil.rmtree(stale)
            if self.target.exists():  # there and back, because a mount point cannot be renamed
                self.target.rename(self.old)
                self.old.rename(self.target)
            if self.new.exists():
                self.fill()
            self.partial.mkdir()
        except OSError as error:
            raise self._cannot_be_written(error) from None

    def fill(self) -> None:
        """Put the finished folder in its place, then remove the one that was there."""
        try:
            if self.partial.exists():
                self.partial.rename(self.new)
            self._check()
            if self._occupied():
                self.target.rename(self.old)
            self.new.rename(self.target)
        except (OSError, UserError) as error:
            with suppress(OSError):
                if self.old.exists() and not self._occupied():
                    self.old.rename(self.target)
            kept = self.new if self.new.exists() else self.partial
            raise UserError(f"{error}. What was written is complete: move {kept} to a place of your choice") from None
        sync(self.target.parent)
        shutil.rmtree(self.old, ignore_errors=True)  # the next call tries again

    def _occupied(self) -> bool:
        """Whether something is there other than an empty folder. A link is there only where links form a loop."""
        target = self.target
        return target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir())))

    def _check(self) -> None:
        """Refuse what may not be replaced."""
        if not self._occupied():
            return
        if not (self.target / self.marker).is_file():
            refused = f"exists and holds no {self.marker}, so it is not replaced: choose another output"
            raise UserError(f"{self.target} {refused}")
        if not self.overwrite:
            raise UserError(f"{self.target} exists: choose another output, or replace it with --overwrite")

    def _cannot_be_written(self, error: OSError) -> UserError:
        return UserError(
            f"{self.target} cannot be created or replaced ({error}): the parent folder must be writable, and a mount "
            "point cannot be replaced; name a folder inside it, or choose another output"
        )
