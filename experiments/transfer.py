"""Does pre-training help? One architecture from several beginnings, fine-tuned on the tasks of experiments/tasks/.

    python experiments/transfer.py --text FILE --tasks FOLDER [--recipe brief] [--folder ...] [--workers 2] [--seeds 5]

FILE is the text to pre-train on (100 MB or more). In FOLDER, each task has a folder of its name. The recipes `brief`
and `longer` are in beginnings.py. All is resumed when the command is started again. After each task it writes what is
complete to experiments/results/transfer.json, and plot and table to docs/. `--only` names some of the beginnings, and
`--task` some of the tasks.
"""

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from beginnings import RECIPES, Recipe, make_all, seconds, updates_of
from compare import put
from fine_tuned import FILES, ROOT, about, fine_tune, is_fine_tuned, test_scores
from floors import floors
from matplotlib.figure import Figure

from fast_electra.files import read_json, write_json
from fast_electra.finetuning.tables import read_data
from fast_electra.finetuning.tasks import open_task
from fast_electra.plotting import BLUE, GREY, ORANGE, STYLE

RESULTS = ROOT / "experiments/results/transfer.json"
# Of fine-tuning, for every beginning; tried on dev sets.
EPOCHS = {"rt_sentiment": 3, "vader_intensity": 3, "qnli_squad": 3, "vitaminc_nli": 1}
RATE = 0.001
FLOORS = {"tfidf": "TF-IDF, linear", "majority": "commonest answer"}


def main() -> None:
    """Pre-train, fine-tune, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tasks", type=Path, required=True)
    parser.add_argument("--recipe", choices=RECIPES, default="brief")
    parser.add_argument("--folder", type=Path, help="of all runs; default: runs/transfer_RECIPE")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="beginnings; default: random, and all of the recipe")
    parser.add_argument("--task", nargs="+", choices=EPOCHS, default=list(EPOCHS))
    given = parser.parse_args()
    recipe, folder = RECIPES[given.recipe], given.folder or ROOT / f"runs/transfer_{given.recipe}"
    names = given.only or list(labels(recipe))
    if unknown := set(names) - set(labels(recipe)):
        parser.error(f"--only {unknown.pop()}: recipe {given.recipe} has {', '.join(labels(recipe))}")
    folder.mkdir(parents=True, exist_ok=True)
    make_all(recipe, folder, given.text, names, given.workers)
    for task in given.task:
        with ThreadPoolExecutor(given.workers) as pool:
            jobs = [(recipe, folder, given.tasks, task, name, given.seeds) for name in names]
            list(pool.map(lambda job: finetune(*job), jobs))
        write(given.recipe, folder, given.tasks, given.seeds)


def labels(recipe: Recipe) -> dict[str, str]:
    """Return what is fine-tuned, and how tables and plots name it. An auxiliary has other sizes, and is not."""
    fine_tuned = {name: each.label for name, each in recipe.beginnings.items() if each.layers == 4}
    return {"random": "random initialisation"} | fine_tuned


def finetune(recipe: Recipe, folder: Path, tasks: Path, task: str, name: str, seeds: int) -> None:
    """Fine-tune one beginning on one task with every seed."""
    keys = {
        "pretrained": folder / (recipe.random if name == "random" else name),
        "tokenizer": folder / "tokenizer",
        "sequence_length": 128,
        "epochs": EPOCHS[task],
    }
    deepspeed = {"optimizer.params.lr": RATE, "bf16.enabled": "true", "fp16.enabled": "false"}
    fine_tune(folder / "tasks" / task / name, task, tasks, seeds, keys, deepspeed)


def write(name: str, folder: Path, tasks: Path, seeds: int) -> None:
    """Collect the test scores of every seed of a recipe; write figures, plot and table of what is complete."""
    recipe, found = RECIPES[name], {}
    for each, file in FILES.items():
        task = open_task(str(file))
        runs = {beginning: folder / "tasks" / each / beginning for beginning in labels(recipe)}
        if scores := {key: test_scores(run, seeds) for key, run in runs.items() if is_fine_tuned(run, seeds)}:
            bare = {key: row[task.metric] for key, row in floors(task, read_data(task, tasks / each)).items()}
            found[each] = {"metric": task.metric, "scores": scores, "floors": bare}
    begun = [each for each in recipe.beginnings if (folder / each / "metrics.jsonl").exists()]
    costs = {each: {"updates": updates_of(recipe, folder, each), "seconds": seconds(folder, each)} for each in begun}
    result = {"about": about("torch", "deepspeed"), "tasks": found, "pretraining": costs, "epochs": EPOCHS}
    write_json(RESULTS, (read_json(RESULTS) if RESULTS.exists() else {}) | {name: result})
    docs = ROOT / "docs/results.md"
    docs.write_text(show(read_json(RESULTS), docs.parent / "images", docs.read_text(encoding="utf-8")), "utf-8")


def show(results: dict[str, Any], images: Path, text: str) -> str:
    """Draw the plots of all recipes, and return the text with their tables."""
    for name, result in results.items():
        if result["tasks"]:
            draw(labels(RECIPES[name]), result["tasks"], images / f"transfer_{name}.svg")
            text = put(text, f"transfer_{name}", table(labels(RECIPES[name]), result["tasks"]))
    return text


def table(names: dict[str, str], found: dict[str, Any]) -> str:
    """Return a Markdown table: mean and standard deviation over seeds, bold where it clears TF-IDF by two of them."""
    lines = [f"| | {' | '.join(found)} |", "|---" * (1 + len(found)) + "|"]
    for name, label in names.items():
        cells = [_cell(task["scores"].get(name, []), task["floors"]["tfidf"]) for task in found.values()]
        if set(cells) != {"–"}:
            lines.append(f"| {label} | {' | '.join(cells)} |")
    for name, label in FLOORS.items():
        cells = [f"{task['floors'][name]:.3f}" for task in found.values()]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(scores: list[float], floor: float) -> str:
    if not scores:
        return "–"
    spread = stdev(scores) if len(scores) > 1 else 0.0
    cell = f"{mean(scores):.3f} ± {spread:.3f}"
    return f"**{cell}**" if mean(scores) - 2 * spread > floor else cell


def draw(names: dict[str, str], found: dict[str, Any], file: Path) -> None:
    """Draw each seed as a point, its mean as a bar, and TF-IDF's score as a dashed line."""
    import matplotlib

    with matplotlib.rc_context(STYLE | {"figure.facecolor": "white", "svg.hashsalt": file.name}):
        figure = Figure(figsize=(9.0, 2.6), layout="constrained")
        shown = [name for name in names if any(name in task["scores"] for task in found.values())]
        row = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
        for axes, (name, task) in zip(row, found.items(), strict=True):
            for place, beginning in enumerate(shown):
                scores, colour = task["scores"].get(beginning), BLUE if beginning == "fast" else ORANGE
                if scores is None:
                    continue
                axes.plot(scores, [place] * len(scores), "o", color=colour, markersize=3.5, alpha=0.7)
                axes.plot([mean(scores)], [place], "|", color=colour, markersize=14, markeredgewidth=2)
            axes.axvline(task["floors"]["tfidf"], color=GREY, linestyle=(0, (4, 3)), linewidth=1.2)
            axes.set_title(f"{name}\n{task['metric']}", fontsize=9)
            axes.set_yticks(range(len(shown)), [names[beginning] for beginning in shown])
        axes.set_ylim(len(shown) - 0.5, -0.5)  # the first on top
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, metadata={"Date": None})


if __name__ == "__main__":
    main()
