"""Atomic checkpoints, and resuming that stops with an error instead of silently starting from zero.

    checkpoints/update-00001000/   DeepSpeed's files, and complete.json with their sizes and hashes, written last
    checkpoints/latest             the name of the newest one

The auxiliary model is never inside: the run's config.json names it and its hash.
"""

import shutil
from pathlib import Path

from fast_electra.files import FileRecord, check_files, read_settings, sync_folder, write_json, write_text
from fast_electra.settings import Settings, UserError
from fast_electra.training.engines import Engine, Ranks, wait_for_ranks

COMPLETE = "complete.json"


class Complete(Settings):
    """Contents of complete.json: number of updates done, number of processes, and [size, hash] of each file."""

    update: int
    ranks: int
    files: dict[str, tuple[int, str]]


def name(update: int) -> str:
    """Return the name of the folder that holds the state after `update` updates."""
    return f"update-{update:08d}"


def save(folder: Path, engine: Engine, ranks: Ranks, update: int, keep: int) -> None:
    """Write the state after `update` updates into `folder`, and leave the `keep` newest checkpoints there.

    All ranks call it; they share the file system.
    """
    whole = folder / name(update)
    partial = folder / f"partial-{whole.name}"
    if ranks.rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
    wait_for_ranks()
    engine.save_checkpoint(str(folder), tag=partial.name, client_state={"update": update}, save_latest=False)
    wait_for_ranks()
    if ranks.rank == 0:
        files = {file.name: (file.size, file.hash) for file in map(FileRecord.of, sorted(partial.iterdir()))}
        write_json(partial / COMPLETE, Complete(update=update, ranks=ranks.world, files=files).model_dump())
        sync_folder(partial)
        shutil.rmtree(whole, ignore_errors=True)
        partial.rename(whole)
        write_text(folder / "latest", whole.name + "\n")
        prune(folder, whole.name, keep)
    wait_for_ranks()


def prune(folder: Path, latest: str, keep: int) -> None:
    """Remove all checkpoints but the `keep` newest ones up to `latest`.

    Later ones go too. They are there where a user set `latest` back and the run resumed from an earlier update.
    """
    written = sorted(path.name for path in folder.glob("update-*"))
    kept = [update for update in written if update <= latest][-keep:]
    for gone in set(written) - set(kept):
        shutil.rmtree(folder / gone)


def newest(folder: Path, ranks: Ranks) -> Path | None:
    """Return the checkpoint of `folder` to resume from; None only where none was ever written.

    Rank 0 checks the contents of its files, the others only the sizes.

    Raises:
        UserError: there are checkpoints, or traces of them, but the newest is damaged or does not fit the run.
    """
    names = sorted(path.name for path in folder.glob("update-*"))
    latest = folder / "latest"
    if not names and not latest.exists():
        return None
    whole = ", ".join(names) or "there is none"
    remedy = f"write the name of a complete one into {latest} ({whole}), or name another run folder"
    if not latest.exists():
        raise UserError(f"{latest} is missing beside checkpoints; {remedy}")
    try:
        named = latest.read_text(encoding="utf-8", errors="replace").strip()
    except OSError as error:
        raise UserError(f"{latest} cannot be read ({error.strerror}); {remedy}") from None
    if named not in names:
        raise UserError(f"{latest} names {named!r}, which is not there; {remedy}")
    checkpoint = folder / named
    described, unfinished = checkpoint / COMPLETE, f"the checkpoint was never finished, or is damaged; {remedy}"
    complete = read_settings(described, Complete, f"{described} is missing: {unfinished}", unfinished)
    records = [FileRecord(name=file, size=size, hash=found) for file, (size, found) in complete.files.items()]
    check_files(checkpoint, records, remedy, verify=ranks.rank == 0)
    if complete.ranks != ranks.world:
        raise UserError(
            f"{checkpoint} was written by {complete.ranks} processes and this run has {ranks.world}: "
            f"resume with {complete.ranks} (on one machine: deepspeed --num_gpus {complete.ranks} ...)"
        )
    return checkpoint


def load(checkpoint: Path, engine: Engine) -> int:
    """Load a checkpoint into the engine and return the number of updates done."""
    path, state = engine.load_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
    assert path is not None, checkpoint
    return int(state["update"])
