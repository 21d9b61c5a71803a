"""Names on the command line: each file once, nothing left out in silence, and arguments that are out of range."""

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fast_electra.cli import main
from fast_electra.settings import UserError
from fast_electra.text.inputs import expand, open_inputs


def names(folder: Path, *inputs: Path | str) -> list[str]:
    return [str(path.relative_to(folder)) for path in expand(inputs)]


def test_expand_finds_files_once_and_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("b.txt", "a.jsonl.gz", "sub/c.parquet.zst", "sub/notes.md", ".git/d.txt", ".hidden.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = [str(p.relative_to(tmp_path)) for p in expand([tmp_path / "b.txt", tmp_path])]
    assert names == ["b.txt", "a.jsonl.gz", "sub/c.parquet.zst"]
    assert "notes.md" in capsys.readouterr().err
    assert [p.name for p in expand([f"{tmp_path}/**/*.zst", f"{tmp_path}/*.txt"])] == ["c.parquet.zst", "b.txt"]


def test_expand_refuses_what_it_cannot_find_or_read(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").touch()
    (tmp_path / "empty").mkdir()
    for name, message in {
        "a.pdf": "supported",
        "no*.txt": "no file matches",
        "b.txt": "b.txt",
        "empty": "files under",
    }.items():
        with pytest.raises(UserError, match=message):
            expand([tmp_path / name])
    with pytest.raises(UserError, match="no input"):
        expand([])


@pytest.mark.parametrize(("name", "package"), [("a.parquet", "pyarrow"), ("a.txt.zst", "zstandard")])
def test_a_missing_package_is_said_before_anything_is_read(
    name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_bytes(b"")
    monkeypatch.setattr("importlib.util.find_spec", lambda wanted: None)
    with pytest.raises(UserError, match=f"needs {package}: pip install {package}"):
        expand([tmp_path])


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A folder with links to a folder outside, to its own folders, to itself (twice), and to one of its files."""
    for name in ("in/real/a.txt", "out/deep/b.txt"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(name)
    for name, target in {"more": "../out", "p": ".", "q": ".", "again": "real", "c.txt": "real/a.txt"}.items():
        (tmp_path / "in" / name).symlink_to(target)
    (tmp_path / "in/real/up").symlink_to("..")
    return tmp_path


@pytest.mark.parametrize("pattern", ["in", "in/**", "in/**/*.txt", "i?/**/*.txt"])
@pytest.mark.timeout(20)
def test_links_are_followed_once(linked: Path, pattern: str) -> None:
    """Two links to their own folder make 2^40 paths."""
    files = expand([linked / pattern])
    assert sorted(path.read_text() for path in files) == ["in/real/a.txt", "out/deep/b.txt"]


def test_a_glob_reads_the_folders_that_it_matches(tmp_path: Path) -> None:
    for name in ("a.txt", "year/b.txt", "year/[1]/c.txt", "empty"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch() if "." in name else (tmp_path / name).mkdir()
    assert names(tmp_path, f"{tmp_path}/*") == ["a.txt", "year/[1]/c.txt", "year/b.txt"]
    assert names(tmp_path, f"{tmp_path}/*/**/c.txt", f"{tmp_path}/**/[[]1]/*") == ["year/[1]/c.txt"]


def test_what_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "gone.txt").symlink_to("absent.txt")
    (tmp_path / "unmounted").symlink_to("/absent/disk")
    (tmp_path / "loop.txt").symlink_to("loop.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "lfs.jsonl").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    for name, message in {
        "gone.txt": "a link to something that is not there",
        "unmounted": "a link to something that is not there",
        "loop.txt": "a link to something that is not there",
        "pipe.txt": "neither a file nor a folder",
        "lfs.jsonl": "git lfs pull",
    }.items():
        folder = tmp_path / f"only-{name}"
        folder.mkdir()
        (tmp_path / name).rename(folder / name)
        for given in (folder, folder / name, f"{folder}/*", f"{folder}/**"):
            with pytest.raises(UserError, match=f"{name}.*{message}"):
                expand([given])
    with pytest.raises(UserError, match="empty name"):
        expand([""])


def test_a_folder_that_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    (tmp_path / "a.txt").touch()
    monkeypatch.chdir(tmp_path)
    user = os.geteuid()
    if user == 0:  # root may read every folder
        tmp_path.chmod(0o755)
        os.seteuid(65534)
    try:
        for given in (".", "**"):
            with pytest.raises(UserError, match="closed: Permission denied; check its owner and mode"):
                expand([given])
    finally:
        os.seteuid(user)


def test_what_is_left_out_of_a_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.json", ".b.txt", "c.csv", "t/tokenizer.json", "t/tokenizer.model", "hf/tokenizer.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert names(tmp_path, tmp_path) == ["a.json", "hf/tokenizer.json"]
    printed = capsys.readouterr().err
    assert [line.partition("because ")[2] for line in printed.splitlines()] == [
        "of other kinds: 1 (c.csv)",
        "hidden: 1 (.b.txt)",
        "written by fast-electra: 1 (t)",
    ]


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("tokenizer", "--character-coverage 0.95", "--character-coverage 0.95: it must be from 0.98 to 1"),
        ("tokenizer", "--character-coverage nan", "from 0.98 to 1"),
        ("tokenizer", "--character-coverage 1.1", "from 0.98 to 1"),
        ("tokenizer", "--vocabulary 99999999999", "--vocabulary 99999999999: it must be from 262 to 16777216"),
        ("tokenizer", "--vocabulary 16777216", "at most"),
        ("tokenizer", "--max-train-bytes 0", "--max-train-bytes 0: it must be at least 1"),
        ("corpus", "--workers 0", "--workers 0: it must be from 1 to 1024"),
        ("corpus", "--workers 1000000", "from 1 to 1024"),
        ("corpus", "--shard-bytes -1", "--shard-bytes -1: it must be at least 1"),
        ("corpus", "--heldout nan", "at least 0 and below 1"),
        ("both", "--max-document-bytes 0", "--max-document-bytes 0: it must be from 1 to 1073741824"),
        ("both", "--max-document-bytes 99999999999", "from 1 to 1073741824"),
        ("both", "--field=", "--field is empty"),
        ("both", "--field body", "--field body is about JSON lines and parquet, and the input has only .txt"),
        ("both", "--input=", "--input has an empty name"),
        ("both", "--input sample --document-per-line", "--document-per-line is about .txt files"),
    ],
)
def test_an_argument_out_of_range_is_refused_with_its_range(
    command: str, arguments: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("some words and more words")
    for one in ("tokenizer", "corpus") if command == "both" else (command,):
        given = [one, "--input", str(tmp_path / "a.txt"), "--output", str(tmp_path / "o"), *arguments.split()]
        assert main(given) == 2
        printed = capsys.readouterr()
        assert message in printed.err
        assert printed.out + printed.err == printed.err
        assert printed.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_lines_that_look_like_documents_are_remarked_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], pack: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / ("a.txt.gz" if pack is gzip.compress else "a.txt")
    for text, remark in {
        "one line\n" * 30: True,
        "two\nlines\n\n" * 30: False,
        "a book's title page\n" * 10: False,
    }.items():
        path.write_bytes(pack(text.encode()))
        for document_per_line in (False, True):
            open_inputs([path], "text", 1000, document_per_line)
            printed = capsys.readouterr().err
            assert ("begins with 30 lines and no blank one" in printed) == (remark and not document_per_line)
            assert bool(printed) == (remark and not document_per_line)


def test_the_home_folder_is_put_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("some words and more words")
    assert main(["tokenizer", "--input=~/a.txt", "--output=~/t", "--vocabulary=273"]) == 0
    assert (tmp_path / "t").is_dir()
    assert not (tmp_path / "~").exists()
