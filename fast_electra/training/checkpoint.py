"""Checkpoints that are whole or not there, and the resumption that never starts again from zero in silence.

    checkpoints/update-00001000/   DeepSpeed's files, and complete.json with their sizes and hashes, written last
    checkpoints/latest             the name of the newest one

The auxiliary model is never inside: the run's config.json names it and its hash.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from fast_electra.files import file_hash, write_json, write_text
from fast_electra.settings import UserError
from fast_electra.training.engines import Engine, Ranks, wait_for_ranks

COMPLETE = "complete.json"


def name(update: int) -> str:
    """The folder of the state after `update` updates."""
    return f"update-{update:08d}"


def save(folder: Path, engine: Engine, ranks: Ranks, update: int, keep: int) -> None:
    """Writes the state after `update` updates. All ranks call it; they share the file system."""
    whole = folder / name(update)
    partial = folder / f"partial-{whole.name}"
    if ranks.rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
    wait_for_ranks()
    engine.save_checkpoint(str(folder), tag=partial.name, client_state={"update": update}, save_latest=False)
    wait_for_ranks()
    if ranks.rank == 0:
        files = {file.name: [file.stat().st_size, file_hash(file)] for file in sorted(partial.iterdir())}
        write_json(partial / COMPLETE, {"update": update, "ranks": ranks.world, "files": files})
        shutil.rmtree(whole, ignore_errors=True)
        partial.rename(whole)
        write_text(folder / "latest", whole.name + "\n")
        prune(folder, whole.name, keep)
    wait_for_ranks()


def prune(folder: Path, latest: str, keep: int) -> None:
    """Removes all but the `keep` newest checkpoints up to `latest`, and those of later updates.

    There are later ones where a user set `latest` back and the run went on from there.
    """
    written = sorted(path.name for path in folder.glob("update-*"))
    kept = [update for update in written if update <= latest][-keep:]
    for gone in set(written) - set(kept):
        shutil.rmtree(folder / gone)


def newest(folder: Path, ranks: Ranks) -> Path | None:
    """The checkpoint to resume from; None only where none was ever written. Rank 0 checks the contents for all.

    Raises:
        UserError: where there are checkpoints, or traces of them, but the newest cannot be trusted or does not fit.
    """
    names = sorted(path.name for path in folder.glob("update-*"))
    latest = folder / "latest"
    if not names and not latest.exists():
        return None
    whole = ", ".join(names) or "there is none"
    remedy = f"write the name of a whole one into {latest} ({whole}), or name another run folder"
    if not latest.exists():
        raise UserError(f"{latest} is missing beside checkpoints; {remedy}")
    named = latest.read_text(encoding="utf-8", errors="replace").strip()
    if named not in names:
        raise UserError(f"{latest} names {named!r}, which is not there; {remedy}")
    checkpoint = folder / named
    description = _description(checkpoint, remedy)
    if ranks.rank == 0:
        _verify(checkpoint, description["files"], remedy)
    saved = description["ranks"]
    if saved != ranks.world:
        raise UserError(
            f"{checkpoint} was written by {saved} processes and this run has {ranks.world}: resume with {saved} "
            f"(on one machine: deepspeed --num_gpus {saved} ...)"
        )
    return checkpoint


def _description(checkpoint: Path, remedy: str) -> dict[str, Any]:
    try:
        return dict(json.loads((checkpoint / COMPLETE).read_text()).items())
    except (OSError, ValueError, AttributeError):
        raise UserError(f"{checkpoint} has no readable {COMPLETE}: it was never finished; {remedy}") from None


def _verify(checkpoint: Path, files: dict[str, tuple[int, str]], remedy: str) -> None:
    for file_name, (size, digest) in files.items():
        file = checkpoint / file_name
        if not file.exists():
            raise UserError(f"{file} is missing; {remedy}")
        if file.stat().st_size != size or file_hash(file) != digest:
            raise UserError(f"{file} is not what was written; {remedy}")


def load(checkpoint: Path, engine: Engine) -> int:
    """Puts the engine where it was and returns the number of updates done."""
    path, state = engine.load_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
    assert path is not None, checkpoint
    return int(state["update"])
