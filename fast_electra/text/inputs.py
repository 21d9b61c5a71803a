"""Names on a command line to the files that they mean, checked before anything is read."""

import glob
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path

from fast_electra.corpus.frozen_tokenizer import FROZEN
from fast_electra.corpus.sentencepiece_tokenizer import CARD, MODEL
from fast_electra.corpus.shards import MANIFEST, QUARANTINE
from fast_electra.settings import UserError
from fast_electra.streams import COMPRESSED, StreamError, chunks, kind, packing, utf8
from fast_electra.text.documents import printable

SAMPLE = Path(__file__).parent / "sample" / "sample_corpus.jsonl.xz"
JSON_LINES = (".jsonl", ".ndjson", ".json")
KINDS = (".txt", *JSON_LINES, ".parquet")
DEFAULT_MAX_DOCUMENT_BYTES = 16 * 2**20  # no book is longer, and a few of them in flight fit any memory
_OWN = ({MANIFEST, QUARANTINE}, {CARD, MODEL}, {FROZEN})  # what a folder of shards holds, and those of tokenizers
_LFS = b"version https://git-lfs"  # begins the small file that stands for one that was not fetched


def check_range(flag: str, value: float, low: float, high: float = float("inf")) -> None:
    """Refuse an argument outside [low, high].

    Raises:
        UserError: it is outside, or not a number.
    """
    if not low <= value <= high:
        allowed = f"at least {low}" if high == float("inf") else f"from {low} to {high}"
        raise UserError(f"{flag} {value}: it must be {allowed}")


def open_inputs(
    inputs: Iterable[str | os.PathLike[str]], field: str, max_document_bytes: int, document_per_line: bool
) -> list[Path]:
    """Return the files of `expand`, after a check of the arguments that say how to read them.

    Raises:
        UserError: as in `expand`; or an argument is out of range, or says nothing about any of these files.
    """
    check_range("--max-document-bytes", max_document_bytes, 1, 2**30)
    if not field:
        raise UserError("--field is empty: name the key or column that holds the text")
    files = expand(inputs)
    kinds = {kind(file) for file in files}
    if document_per_line and ".txt" not in kinds:
        raise UserError("--document-per-line is about .txt files, and the input has none: leave it out")
    if field != "text" and kinds == {".txt"}:
        raise UserError(f"--field {field} is about JSON lines and parquet, and the input has only .txt: leave it out")
    if not document_per_line:
        _remark_on_lines(next((file for file in files if kind(file) == ".txt"), None))
    return files


def _remark_on_lines(path: Path | None) -> None:
    """Say so if a .txt file begins as if each line were a document, because it is read as a single one."""
    if path is None:
        return
    start = b""
    with suppress(StreamError):  # the readers say what is wrong
        for part in islice(utf8(chunks(path), 0), 16):
            start += part
    *lines, _ = start.decode("utf-8", "replace").split("\n")
    if len(lines) >= 20 and all(map(str.strip, lines)):
        print(
            f"note: {printable(path)} begins with {len(lines):,} lines and no blank one: they are one document. "
            "If each line is a document, use --document-per-line.",
            file=sys.stderr,
        )


def expand(inputs: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Return the files that the names mean, each once, in a fixed order.

    A name is a file, a folder, a glob, or `sample` for the corpus that ships.

    Raises:
        UserError: a name matches nothing, cannot be read, or is of an unknown kind; or a package is missing.
    """
    found: dict[Path, Path] = {}
    for path in chain.from_iterable(_matches(str(name)) for name in inputs):
        _check(path)
        found.setdefault(path.resolve(), path)
    if not found:
        raise UserError("no input: name files, folders, globs, or `sample` for the corpus that ships")
    for suffix, package in ((".parquet", "pyarrow"), (".zst", "zstandard")):  # now, not hours into the build
        needed = any(suffix in (packing(path), kind(path)) for path in found.values())
        if needed and importlib.util.find_spec(package) is None:
            raise UserError(f"reading {suffix} needs {package}: pip install {package}")
    return list(found.values())


def _check(path: Path) -> None:
    if not path.is_file():
        link = "a link to something that is not there: restore that, or remove the link"
        other = "neither a file nor a folder: write its text to a file first"
        raise UserError(f"cannot read {path}: it is {link if path.is_symlink() else other}")
    if not os.access(path, os.R_OK):
        raise UserError(f"cannot read {path}: permission denied; check the file's owner and mode")
    with path.open("rb") as file:
        if file.read(2**10).startswith(_LFS) and not file.read(1):
            raise UserError(f"{path} is a Git LFS pointer, not the file itself: fetch it with `git lfs pull`")


def _matches(name: str) -> list[Path]:
    if not name:
        raise UserError("--input has an empty name: is a variable of the shell not set?")
    if name == "sample":
        return [SAMPLE]
    path, supported = Path(name), ", ".join(KINDS)
    if path.is_dir():
        if not (files := _walk(path, set())):
            raise UserError(f"no {supported} files under {name}")
        return files
    seen: set[Path] = set()
    files = []
    for match in [path] if os.path.lexists(path) else sorted(_glob(path)):  # broken links too: they are refused by name
        if match.is_dir():
            files += _walk(match, seen)
        elif kind(match) in KINDS or not match.exists():
            files.append(match)
        else:
            packed = ", ".join(COMPRESSED)
            raise UserError(f"{match}: unknown kind of file; supported: {supported}, each also packed ({packed})")
    if not files:
        raise UserError(f"no file matches {name}: check the path, or quote the glob")
    return files


def _glob(pattern: Path) -> Iterator[Path]:
    """Yield what a pattern matches. `**` visits no folder twice, which Python's does where links make loops."""
    parts = pattern.parts
    if "**" not in parts:
        yield from map(Path, glob.glob(str(pattern)))  # noqa: PTH207 (Path.glob takes no absolute pattern)
        return
    place = parts.index("**")
    for base in filter(Path.is_dir, _glob(Path(*parts[:place]))):
        if rest := parts[place + 1 :]:
            for folder, _, _ in _visit(base, set()):
                yield from _glob(Path(glob.escape(str(folder)), *rest))
        else:
            yield base


def _visit(folder: Path, seen: set[Path]) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Yield each folder with the names of its folders and of its files. The caller may remove folders not to visit.

    Links are followed, but a folder that is in `seen` is not visited again: so loops end.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"cannot read the folder {error.filename}: {error.strerror}; check its owner and mode")

    for place, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        if (real := Path(place).resolve()) in seen:
            folders.clear()
            continue
        seen.add(real)
        yield Path(place), folders, names
        folders[:] = sorted(name for name in folders if not name.startswith("."))


def _walk(folder: Path, seen: set[Path]) -> list[Path]:
    """Return the files of a folder in the order of their paths, and name what is left out."""
    found: list[Path] = []
    others: list[Path] = []
    hidden: list[Path] = []
    own: list[Path] = []
    for here, folders, names in _visit(folder, seen):
        if any(marks <= set(names) for marks in _OWN):
            own.append(here)
            folders.clear()
            continue
        hidden += [here / name for name in (*folders, *names) if name.startswith(".")]
        for path in (here / name for name in names if not name.startswith(".")):
            # What is broken has no kind that could be trusted: `_check` refuses it.
            (found if kind(path) in KINDS or not path.exists() else others).append(path)
    for what, paths in (("of other kinds", others), ("hidden", hidden), ("written by fast-electra", own)):
        if paths:
            examples = ", ".join(printable(path.relative_to(folder)) for path in sorted(paths)[:5])
            more = ", ..." if len(paths) > 5 else ""
            print(f"{folder}: left out, because {what}: {len(paths)} ({examples}{more})", file=sys.stderr)
    return sorted(found)
