"""Atomic checkpoints, and resuming that stops with an error instead of silently starting from zero.

    checkpoints/update-00001000/   DeepSpeed's files, and complete.json with their sizes and hashes, written last
    checkpoints/latest             the name of the newest one
    checkpoints/partial-...        what is being written or removed; what a killed run left goes at the next start

The auxiliary model is never inside: the run's config.json names it and its hash.
"""

import shutil
from pathlib import Path

import torch
from torch import Tensor

from fast_electra.files import (
    FileRecord,
    check_files,
    clear_leftovers,
    forget,
    read_settings,
    sync,
    sync_folder,
    write_sealed,
    write_text,
)
from fast_electra.settings import Settings, UserError, first_line
from fast_electra.training.checkpoint_files import read_checkpoint_file
from fast_electra.training.engines import (
    Engine,
    Ranks,
    SharedError,
    from_rank_0,
    raise_together,
    sum_over_ranks,
)

COMPLETE = "complete.json"
PASSED_OVER = "it is passed over"


class Complete(Settings):
    """Contents of complete.json: number of updates done, number of processes, and [size, hash] of each file."""

    update: int
    ranks: int
    files: dict[str, tuple[int, str]]

    @property
    def records(self) -> list[FileRecord]:
        """The same facts about the files."""
        return [FileRecord(name=file, size=size, hash=found) for file, (size, found) in self.files.items()]


def name(update: int) -> str:
    """Return the name of the folder that holds the state after `update` updates."""
    return f"update-{update:08d}"


def save(folder: Path, engine: Engine, ranks: Ranks, update: int, keep: int) -> None:
    """Write the state after `update` updates into `folder`, and leave the `keep` newest checkpoints there.

    An older one is removed only after the new one is on the disk and was read back. All ranks call this; they share
    the file system.

    Raises:
        SharedError: there is no room, a file cannot be written, or the weights are not finite. Nothing half-written
            stays, and the older checkpoints do.
    """
    if not is_finite(engine):
        raise SharedError(
            f"weights or the optimizer's state are not finite after update {update:,}, so they are not saved; lower "
            "optimizer.params.lr, or check the data, and start again from an earlier checkpoint"
        )
    partial = folder / f"partial-{name(update)}"
    try:
        from_rank_0(ranks, lambda: _make_room(partial, checkpoint_bytes(engine)))
        engine.checkpoint_engine.failure = ""
        engine.save_checkpoint(str(folder), tag=partial.name, client_state={"update": update}, save_latest=False)
        raise_together(ranks, engine.checkpoint_engine.failure)
        from_rank_0(ranks, lambda: _put_in_place(partial, Complete(update=update, ranks=ranks.world, files={}), keep))
    except SharedError as error:
        if ranks.rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
        remedy = "start the same command again: it resumes from the newest checkpoint"
        raise SharedError(
            f"checkpoint {folder / name(update)} was not saved: {error}; make room, and {remedy}"
        ) from None


def _make_room(partial: Path, size: int) -> None:
    """Make the folder that DeepSpeed writes into, if the disk has room for `size` bytes."""
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    if (free := shutil.disk_usage(partial).free) < size:
        raise UserError(f"it takes about {size / 1e6:,.0f} MB, and {partial.parent} has {free / 1e6:,.0f} MB of room")


def _put_in_place(partial: Path, complete: Complete, keep: int) -> None:
    """Describe a written checkpoint, verify it, let `latest` name it, and remove old ones. Each step is on the disk."""
    folder, whole = partial.parent, partial.with_name(name(complete.update))
    files = {file.name: (file.size, file.hash) for file in map(FileRecord.of, sorted(partial.iterdir()))}
    complete = complete.model_copy(update={"files": files})
    write_sealed(partial / COMPLETE, complete.model_dump())
    sync_folder(partial)
    forget(partial)
    check_files(partial, complete.records, "the disk did not keep what was written", verify=True)
    _remove(whole)
    partial.rename(whole)
    for above in (folder, folder.parent, folder.parent.parent):  # the run may be new
        sync(above)
    write_text(folder / "latest", whole.name + "\n")
    prune(folder, whole.name, keep)


def checkpoint_bytes(engine: Engine) -> int:
    """Return about how many bytes a checkpoint takes: the parameters, and their fp32 copies with Adam's two moments."""
    return sum(parameter.numel() * (parameter.element_size() + 12) for parameter in engine.module.parameters())


def is_finite(engine: Engine) -> bool:
    """Return whether all numbers of a checkpoint would be finite. All ranks must call this."""
    adam = engine.optimizer.optimizer
    states = [value for state in adam.state.values() for value in state.values() if isinstance(value, Tensor)]
    masters = [parameter for group in adam.param_groups for parameter in group["params"]]
    ends = [torch.stack(torch.aminmax(tensor.detach())) for tensor in (*engine.module.parameters(), *masters, *states)]
    finite = torch.stack([end.isfinite().all().to(engine.device) for end in ends]).all()  # Adam counts on the CPU
    return int(sum_over_ranks(1 - finite.int())) == 0


def prune(folder: Path, latest: str, keep: int) -> None:
    """Remove all checkpoints but the `keep` newest ones up to `latest`.

    Later ones go too. They are there where a user set `latest` back and the run resumed from an earlier update.
    """
    written = sorted(path.name for path in folder.glob("update-*"))
    kept = [update for update in written if update <= latest][-keep:]
    for gone in set(written) - set(kept):
        _remove(folder / gone)


def _remove(checkpoint: Path) -> None:
    """Remove a checkpoint if it is there. Under its own name it is whole until the end."""
    if checkpoint.exists():
        gone = checkpoint.rename(checkpoint.with_name(f"partial-gone-{checkpoint.name}"))
        shutil.rmtree(gone, ignore_errors=True)


def newest(folder: Path, ranks: Ranks) -> Path | None:
    """Return the newest whole checkpoint of `folder` to resume from; None only where none was ever written.

    Rank 0 chooses, see `choose`; the others check that they see the same files.

    Raises:
        UserError: there are checkpoints, or traces of them, but none is whole, or the newest does not fit the run.
    """
    chosen = from_rank_0(ranks, lambda: choose(folder, ranks.world))
    if chosen is not None and ranks.rank > 0:
        check_files(chosen, _complete(chosen).records, "all hosts must see the same run folder", verify=False)
    return chosen


def choose(folder: Path, world: int) -> Path | None:
    """Choose for `newest`: the checkpoint that `latest` names, or the newest whole one before it.

    A run of `world` processes is to load it. One printed line names what was passed over. What a killed run left is
    removed.
    """
    _clear(folder)
    names = sorted((path.name for path in folder.glob("update-*")), reverse=True)
    latest = folder / "latest"
    if not names and not latest.exists():
        return None
    passed = []
    try:
        named = latest.read_text(encoding="utf-8", errors="replace").strip()
        if named in names:
            names = names[names.index(named) :]
        else:
            passed.append(f"{latest} names {named!r}, which is not there")
    except OSError as error:
        passed.append(f"{latest} cannot be read ({error.strerror})")
    for checkpoint in (folder / update for update in names):
        try:
            complete = check(checkpoint)
        except (UserError, OSError) as error:
            passed.append(str(error))
            continue
        if passed:
            print(f"note: {'; '.join(passed)}; the newest whole checkpoint is {checkpoint}", flush=True)
        if complete.ranks != world:
            raise UserError(
                f"{checkpoint} was written by {complete.ranks} processes and this run has {world}: "
                f"resume with {complete.ranks} (on one machine: deepspeed --num_gpus {complete.ranks} ...)"
            )
        return checkpoint
    raise UserError(
        f"{'; '.join(passed)}; no whole checkpoint is left in {folder}: restore one, or name another run folder"
    )


def _clear(folder: Path) -> None:
    """Remove what a killed run left in its run folder. This run alone writes there."""
    for left in folder.glob("partial-*"):
        shutil.rmtree(left, ignore_errors=True)
    for parent in (folder, folder.parent):
        clear_leftovers(parent)


def check(checkpoint: Path) -> Complete:
    """Check that a checkpoint is whole: its description, the contents of its files, and that they hold no code.

    Raises:
        UserError: it is not.
    """
    complete = _complete(checkpoint)
    check_files(checkpoint, complete.records, PASSED_OVER, verify=True)
    for file in checkpoint.glob("*.pt"):
        try:
            read_checkpoint_file(file, mmap=True)
        except UserError as error:
            raise UserError(f"{error}; {PASSED_OVER}") from None
    return complete


def _complete(checkpoint: Path) -> Complete:
    described, unfinished = checkpoint / COMPLETE, "the checkpoint was never finished, or is damaged"
    missing = f"{described} is missing: {unfinished}; {PASSED_OVER}"
    complete = read_settings(described, Complete, missing, f"{unfinished}; {PASSED_OVER}")
    if not complete.files:
        raise UserError(f"{described} names no files; {PASSED_OVER}")
    if name(complete.update) != checkpoint.name:
        raise UserError(f"{described} describes update {complete.update}: the folder was renamed; {PASSED_OVER}")
    return complete


def load(checkpoint: Path, engine: Engine) -> int:
    """Load a checkpoint into the engine and return the number of updates done.

    Raises:
        UserError: the checkpoint does not fit the engine, or this rank's file is damaged.
    """
    try:
        _, state = engine.load_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
        return int(state["update"])
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of many kinds: DeepSpeed takes the content of its files for granted
        reason = f"{type(error).__name__}: {first_line(error)}"
        remedy = "it does not belong to this run; move it away, or name another run folder"
        raise UserError(f"{checkpoint} cannot be loaded ({reason}): {remedy}") from None
