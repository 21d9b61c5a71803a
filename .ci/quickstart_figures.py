"""Prints what the quickstart learnt and how long it took; with --strict, fails where it falls short of the goals."""

import json
import sys
from pathlib import Path
from typing import Any

AUC_GOAL = 0.70
CONTEXT_GOAL = 0.08  # by how much the AUC has to beat the best that the token alone allows
SECONDS_GOAL = 360  # both trainings together, on two cores


def rows(run: Path) -> list[dict[str, Any]]:
    path = run / "metrics.jsonl"
    if not path.exists():
        sys.exit(f"error: {path} is missing: run `make quickstart` first")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def last(run: Path, key: str) -> Any:
    values = [row[key] for row in rows(run) if row.get(key) is not None]
    if not values:
        sys.exit(f"error: no row of {run}/metrics.jsonl has {key}: the run did not finish")
    return values[-1]


def main() -> int:
    folder, strict = Path(sys.argv[1]), "--strict" in sys.argv[2:]
    auxiliary, discriminator = folder / "auxiliary", folder / "discriminator"
    auc = last(discriminator, "heldout_auc")
    beyond = auc - last(discriminator, "heldout_auc_token_identity")
    seconds = [last(run, "seconds") for run in (auxiliary, discriminator)]
    print(f"auxiliary's held-out MLM accuracy   {last(auxiliary, 'heldout_mlm_accuracy'):.3f}")
    print(f"discriminator's held-out AUC        {auc:.3f}   (goal {AUC_GOAL:.2f})")
    print(f"beyond what the token alone allows  {beyond:.3f}   (goal {CONTEXT_GOAL:.2f})")
    parts = " + ".join(f"{part:.0f}" for part in seconds)
    print(f"training                            {sum(seconds):.0f} s   ({parts}; goal {SECONDS_GOAL})")
    print(f"report                              {folder / 'report.html'}")
    reached = auc >= AUC_GOAL and beyond >= CONTEXT_GOAL
    if strict and sum(seconds) > SECONDS_GOAL:  # a busy machine is slower: no reason to fail
        print("note: the training took longer than its goal")
    if strict and not reached:
        print("error: the discriminator falls short of its goals", file=sys.stderr)
    return int(strict and not reached)


if __name__ == "__main__":
    sys.exit(main())
