"""Files and folders appear whole or not at all, and neither the old folder nor finished work is ever lost."""

import errno
import fcntl
import multiprocessing
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fast_electra.files import FileRecord, atomic_file, atomic_folder, check_files, write_text
from fast_electra.settings import UserError

MARKER = "card.json"
FORK = multiprocessing.get_context("fork")


def write(target: Path, text: str, overwrite: bool = True) -> None:
    with atomic_folder(target, MARKER, overwrite) as folder:
        (folder / MARKER).write_text(text)
        (folder / "sub").mkdir()
        (folder / "sub" / "data").write_text(text * 1000)


def content(target: Path) -> str:
    """What `write` wrote, all of it."""
    text = (target / MARKER).read_text()
    assert (target / "sub" / "data").read_text() == text * 1000
    return text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A folder that holds "old"."""
    write(tmp_path / "out", "old")
    return tmp_path / "out"


def test_a_folder_is_replaced_and_nothing_else_stays(target: Path) -> None:
    write(target, "new")
    assert content(target) == "new" and names(target.parent) == ["out"]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write(tmp_path / "out", "new", overwrite=False)
    assert content(tmp_path / "out") == "new"


def test_only_a_folder_of_the_kind_is_replaced(target: Path) -> None:
    with pytest.raises(UserError, match="replace it with --overwrite"):
        write(target, "new", overwrite=False)
    (target / MARKER).unlink()
    with pytest.raises(UserError, match=rf"holds no {MARKER}, so it is not replaced"):
        write(target, "new")
    (target.parent / "file").write_text("precious")
    with pytest.raises(UserError, match=rf"holds no {MARKER}, so it is not replaced"):
        write(target.parent / "file", "new")
    assert names(target) == ["sub"] and names(target.parent) == ["file", "out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_the_old_folder_alone(target: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), atomic_folder(target, MARKER, overwrite=True) as folder:  # noqa: PT012
        (folder / MARKER).write_text("half")
        raise error
    assert content(target) == "old" and names(target.parent) == ["out"]


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_and_the_folder_that_it_names_is_written(target: Path, there: bool) -> None:
    named = target if there else target.parent / "deep" / "not yet"
    link = target.parent / "elsewhere" / "link"
    link.parent.mkdir()
    link.symlink_to(os.path.relpath(named, link.parent))
    write(link, "new")
    assert link.is_symlink() and content(named) == "new" and names(link.parent) == ["link"]


@pytest.fixture(params=["another file system", "a bind mount"])
def mounted(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A mount point. `os.path.ismount` does not know the second kind."""
    folder, source = tmp_path / "volume", tmp_path / "source"
    folder.mkdir()
    source.mkdir()
    how = ["--bind", str(source)] if request.param == "a bind mount" else ["-t", "tmpfs", "none"]
    try:
        subprocess.run(["mount", *how, str(folder)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this user may not mount")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("empty", [True, False])
def test_a_mount_point_is_refused_before_the_work(mounted: Path, empty: bool) -> None:
    """It can be neither renamed nor removed: a volume of a container is one."""
    if not empty:
        (mounted / MARKER).write_text("old")
    before = names(mounted), names(mounted.parent)
    with pytest.raises(UserError, match=r"busy.*a mount point cannot be replaced; name a folder inside") as caught:
        refused_at_once(mounted)
    assert "\n" not in str(caught.value) and (names(mounted), names(mounted.parent)) == before
    write(mounted / "inside", "new")  # the remedy
    write(mounted / "inside", "newer")
    assert content(mounted / "inside") == "newer"


def refused_at_once(target: Path) -> None:
    with atomic_folder(target, MARKER, overwrite=True):
        pytest.fail("the work began")


@pytest.mark.parametrize("name", ["file/out", "n" * 250, "loop"])
def test_what_cannot_be_made_is_refused_before_the_work(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError, match=f"{name} (cannot be created or replaced|exists and holds no)"):
        refused_at_once(tmp_path / name)
    assert names(tmp_path) == ["file", "loop"]


def test_finished_work_is_kept_where_its_place_was_taken(tmp_path: Path) -> None:
    """Another program makes the folder during the work."""
    target, kept = tmp_path / "out", tmp_path / ".out.fast-electra-new"
    message = rf"not replaced: .* is complete: move {kept} to"
    with pytest.raises(UserError, match=message), atomic_folder(target, MARKER, overwrite=True) as folder:  # noqa: PT012
        (folder / MARKER).write_text("new")
        target.mkdir()
        (target / "thesis.tex").touch()
    assert names(target) == ["thesis.tex"] and (kept / MARKER).read_text() == "new"
    with pytest.raises(UserError, match="not replaced"):  # nor does the next call remove it
        refused_at_once(target)
    assert (kept / MARKER).read_text() == "new"
    target.rename(tmp_path / "thesis")
    with pytest.raises(UserError, match="replace it with --overwrite"):  # by what is now in its place
        write(target, "newer", overwrite=False)
    assert (target / MARKER).read_text() == "new" and names(tmp_path) == ["out", "thesis"]


def test_the_old_folder_comes_back_where_the_new_cannot_take_its_place(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No real condition fails between the two renames, so the second one is made to fail."""
    rename, kept = Path.rename, target.parent / ".out.fast-electra-new"

    def fails(self: Path, to: Path) -> Path:
        if self == kept:
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(UserError, match=rf"Input/output error\. .* is complete: move {kept} to") as caught:
        write(target, "new")
    assert "\n" not in str(caught.value)
    assert content(target) == "old" and content(kept) == "new"
    monkeypatch.undo()
    write(target, "newer")
    assert content(target) == "newer" and names(target.parent) == ["out"]


def killed(target: Path, step: int) -> bool:
    """Whether a process that replaces `target` by "new" was killed, just before its rename number `step`."""

    def run() -> None:
        rename, renames = Path.rename, iter(range(1, 100))

        def counted(self: Path, to: Path) -> Path:
            if next(renames) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return rename(self, to)

        Path.rename = counted  # type: ignore[method-assign]
        write(target, "new")

    process = FORK.Process(target=run, daemon=True)
    process.start()
    process.join()
    return process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("overwrite", [True, False])
def test_what_a_killed_process_left_is_repaired(tmp_path: Path, overwrite: bool) -> None:
    """Killed before each of its renames in turn: the next call finds the old folder or the new one, whole."""
    found = []
    for step in range(1, 100):
        target = tmp_path / f"{step}" / "out"
        write(target, "old")
        was_killed = killed(target, step)
        with pytest.raises((UserError, InterruptedError)), atomic_folder(target, MARKER, overwrite):
            raise InterruptedError
        found.append(content(target))
        assert names(target.parent) == ["out"] or not overwrite
        write(target, "newer")
        assert content(target) == "newer" and names(target.parent) == ["out"]
        if not was_killed:
            break
    assert len(found) > 2 and found == sorted(found, reverse=True) and found[-1] == "new"


def test_the_second_of_two_processes_is_refused(tmp_path: Path) -> None:
    """Until the first ends, be it by SIGKILL."""
    target, begun = tmp_path / "out", FORK.Event()

    def first() -> None:
        with atomic_folder(target, MARKER) as folder:
            (folder / MARKER).write_text("half")
            begun.set()
            signal.pause()

    process = FORK.Process(target=first, daemon=True)
    process.start()
    assert begun.wait(60)
    with pytest.raises(UserError, match="is being written by another process: choose another output"):
        refused_at_once(target)
    assert (tmp_path / ".out.fast-electra-partial" / MARKER).read_text() == "half"
    process.kill()
    process.join()
    write(target, "new", overwrite=False)
    assert content(target) == "new" and names(tmp_path) == ["out"]


def test_a_file_system_without_locks_is_enough(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An NFS mount without a lock daemon: the call to the system is made to answer as there."""

    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    write(target, "new")
    assert content(target) == "new" and names(target.parent) == ["out"]


def test_all_is_on_the_disk_before_the_old_folder_goes(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of subfolders and the lists of names as well."""
    fsync, synced = os.fsync, set()

    def seen(descriptor: int) -> None:
        if content(target) == "old":
            synced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", seen)
    write(target, "new")
    assert {path.stat().st_ino for path in (target, *target.rglob("*"))} <= synced


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(OSError, match="disk"), atomic_file(tmp_path / "a.txt") as temporary:  # noqa: PT012
        temporary.write_text("ne")
        raise OSError("disk")
    assert (tmp_path / "a.txt").read_text() == "old" and names(tmp_path) == ["a.txt"]


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _alter(path: Path) -> None:
    path.write_bytes(b"\x01" + path.read_bytes()[1:])


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, "is missing"),
        (_folder, "is missing"),
        (_cut, "has 4 bytes where the manifest says 5"),
        (_alter, r"was altered \(its hash is not that of the manifest\)"),
    ],
)
def test_files_are_compared_with_their_records(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text("hello")
    records = [FileRecord.of(tmp_path / name) for name in ("a", "b")]
    check_files(tmp_path, records, "restore it", verify=True)
    damage(tmp_path / "b")
    with pytest.raises(UserError, match=rf"b {message}; restore it"):
        check_files(tmp_path, records, "restore it", verify=True)
    if damage is _alter:  # sizes alone do not tell
        check_files(tmp_path, records, "restore it", verify=False)
