"""`fast-electra calibrate`: propose the curriculum of an auxiliary model, from its run and a reference curve."""

import math
import shlex
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure

from fast_electra import config
from fast_electra.auxiliary import AnyAuxiliary, OpenedAuxiliary, open_auxiliary
from fast_electra.calibration import fit
from fast_electra.calibration.fit import MEASURES, NODES_K, Reference, Response
from fast_electra.config import RunConfig
from fast_electra.corpus.corpus import Corpus
from fast_electra.corruption import mask
from fast_electra.huggingface.folder import holds_model
from fast_electra.parts import masking, open_run_corpus
from fast_electra.plotting import BLUE, FORMATS, GREY, ORANGE, STYLE
from fast_electra.settings import UserError
from fast_electra.training.loop import evaluation_batch

MICRO_BATCH = 32
SHOWN = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)  # the fractions of a run in the table
PAPER = (2.0, 0.1)  # T0 and tau of C.1
CLOSE = 0.02  # a smaller difference of a measure gets no note
POOR = 0.05  # a larger residual gets one
TITLES = ("replaced, of masked positions", "entropy, of log V")


@dataclass(frozen=True)
class Sample:
    """The sequences on which the auxiliary was measured."""

    sequences: int
    masked: int  # masked positions
    source: str  # "heldout", or "training" if the corpus has no held-out documents


@dataclass(frozen=True)
class Calibration:
    """A proposed curriculum, and everything that shows how good it is."""

    run: RunConfig
    auxiliary: OpenedAuxiliary
    sample: Sample
    response: Response
    reference: Reference
    match: str
    target_2P: np.ndarray  # at the reference's u
    initial: float
    rate: float

    @property
    def overrides(self) -> list[str]:
        """Values of --set that choose the proposed curriculum."""
        keys = {"initial": f"{self.initial:g}", "rate": f"{self.rate:g}"}
        if self.run.curriculum.schedule != "exponential":
            keys = {"schedule": "exponential"} | keys
        return [f"fast_electra.curriculum.{key}={value}" for key, value in keys.items()]

    def residuals(self, initial: float, rate: float) -> dict[str, float]:
        """Return the root mean square over u of each measure's residual under T0 and tau."""
        residuals_2P = self.response.at(fit.temperatures(self.reference.u_P, initial, rate)) - self.target_2P
        return dict(zip(MEASURES, np.sqrt((residuals_2P**2).mean(axis=1)).tolist(), strict=True))


def calibrate(
    path: str | Path,
    overrides: list[str],
    auxiliary: str | Path | None,
    reference: Reference,
    match: str,
    sequences: int,
) -> Calibration:
    """Fit T0 and tau for a config's auxiliary, or for the one in the folder `auxiliary`; see `fit.target`.

    They are fitted to the reference, on so many sequences of the config's corpus, held-out ones if there are any.

    Raises:
        UserError: the config draws by no temperature, or the auxiliary does not fit the corpus.
    """
    if sequences < 1:
        raise UserError(f"--sequences must be at least 1, not {sequences}")
    more = []
    if auxiliary is not None:
        existing = holds_model(Path(auxiliary))
        named, other = ("huggingface", "run") if existing else ("run", "huggingface")
        more = [f"fast_electra.auxiliary.{named}={auxiliary}", f"fast_electra.auxiliary.{other}=null"]
    run = config.load(path, [*overrides, *more]).run
    replacement = run.replacement
    if run.objective != "rtd" or not replacement.from_auxiliary or replacement.augmentation != "temperature":
        what = f"objective {run.objective}"
        if run.objective == "rtd":
            what = f"replacement.distribution {replacement.distribution}, augmentation {replacement.augmentation}"
        raise UserError(
            f"calibrate is for the temperature of an auxiliary model, and {path} has {what}: name a config of "
            "objective rtd that draws from an auxiliary model by temperature, such as ds_configs/tiny.json"
        )
    corpus = open_run_corpus(run)
    opened = open_auxiliary(run, corpus)
    response, sample = measure(run, corpus, opened.model, sequences)
    target_2P = fit.target(reference, response, match)
    initial, rate = (float(f"{value:.3g}") for value in fit.fit(response, reference.u_P, target_2P))
    return Calibration(run, opened, sample, response, reference, match, target_2P, initial, rate)


@torch.no_grad()
def measure(run: RunConfig, corpus: Corpus, model: AnyAuxiliary, sequences: int) -> tuple[Response, Sample]:
    """Run the auxiliary in fp32 on an evaluation's sequences; return its response, and what it was measured on."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model.to(device).eval()
    source, split = ("reference", corpus.train) if corpus.heldout is None else ("heldout", corpus.heldout)
    samples = torch.arange(min(sequences, len(split)))
    sums_2K, positions = torch.zeros(2, len(NODES_K), dtype=torch.float64), 0
    for part in samples.split(MICRO_BATCH):
        batch = evaluation_batch(split, source, part, run.seed).to(device)
        masked = mask(batch, masking(run, corpus.tokenizer))
        hidden_ME = model.hidden(masked.tokens_T, batch.layout, masked.positions_M)
        sums_2K += fit.statistics(hidden_ME, *model.head, masked.original_M, NODES_K)
        positions += len(masked.original_M)
    original_K, entropy_K = (sums_2K / positions).numpy()
    if not np.isfinite(original_K + entropy_K).all():
        raise UserError("the auxiliary model's logits are not finite: train or import it again")
    response = Response(np.stack([1.0 - original_K, entropy_K / math.log(corpus.tokenizer.vocabulary_size)]))
    return response, Sample(len(samples), positions, "training" if corpus.heldout is None else "heldout")


def table(c: Calibration) -> list[dict[str, float]]:
    """Return rows at some u: the target, the result of the proposal, and the temperature that comes nearest."""
    u = np.array([u for u in SHOWN if u <= c.reference.u_P[-1] + 0.02])
    aim = replace(c.reference, curve_2P=c.target_2P).at(u)
    temperature = fit.temperatures(u, c.initial, c.rate)
    names = ("u", "target_replaced", "target_entropy", "temperature", "replaced", "entropy", "best_temperature")
    columns = np.vstack([u, aim, temperature, c.response.at(temperature), fit.best_temperatures(c.response, aim)])
    return [dict(zip(names, row, strict=True)) for row in columns.T.tolist()]


def notes(c: Calibration) -> list[str]:
    """Return what a reader should know before using the proposal, a line each."""
    found, u_P = [], c.reference.u_P
    own_2 = c.response.at(1.0)
    short_P = (own_2[:, None] - c.target_2P).mean(axis=0)  # positive: T = 1 is still too easy
    their_ends = f"at its end {_pair(c.target_2P[:, -1])}, the auxiliary {_pair(own_2)}"
    if c.match == "level" and short_P[-1] > CLOSE:
        before = np.flatnonzero(short_P <= 0)
        since = u_P[before[-1] + 1] if len(before) else u_P[0]
        found.append(
            f"from u = {since:.2f} on the reference is harder than this auxiliary is at T = 1 ({their_ends}), and T "
            "ends there: train the auxiliary longer or deeper, or compare shapes with --match shape"
        )
    if c.match == "level" and short_P[-1] < -CLOSE:
        best = fit.best_temperatures(c.response, c.target_2P[:, -1:])[0]
        found.append(
            f"the reference ends easier than this auxiliary is at T = 1 ({their_ends}): T = {best:.2f} would match "
            "there, but a curriculum ends at 1; --match shape compares the way, not the end"
        )
    if 1.0 - own_2[0] < fit.LEARNT:
        found.append(f"this auxiliary has learnt next to nothing (at T = 1 {_pair(own_2)})")
    if max(c.residuals(c.initial, c.rate).values()) > POOR:
        found.append("the fit is poor: compare the nearest T with the proposed one in the table before using it")
    if c.initial < 1.01:
        found.append("T0 is 1: without any smoothing this auxiliary is as easy as the reference, or easier")
    elif c.initial > 0.99 * fit.HIGHEST:
        found.append(f"T0 = {c.initial:g} is the highest that was searched")
    elif not 1.01 * fit.RATES[0] < c.rate < 0.99 * fit.RATES[1]:
        found.append(f"tau = {c.rate:g} is the end of what was searched")
    if u_P[-1] < 0.95:
        found.append(f"the reference ends at u = {u_P[-1]:.2f}: its run is not complete")
    return found


def to_text(c: Calibration) -> str:
    """Return the result for a terminal. The last line holds the arguments for the training command."""
    encoder, folder = c.auxiliary.encoder, c.auxiliary.place
    where = "held-out" if c.sample.source == "heldout" else "training"
    lines = [
        f"auxiliary {folder} ({encoder['layers']} x {encoder['hidden_size']}): at T = 1 {_pair(c.response.at(1.0))}",
        f"measured  at {c.sample.masked:,} masked positions of {c.sample.sequences:,} {where} sequences",
        f"reference {c.reference.name}, matched by {c.match}",
        "",
        "              target               proposed                 nearest",
        "    u   replaced  entropy        T  replaced  entropy          T",
    ]
    lines += [
        f" {row['u']:4.2f}   {row['target_replaced']:8.1%} {row['target_entropy']:8.1%} {row['temperature']:8.2f}  "
        f"{row['replaced']:8.1%} {row['entropy']:8.1%}   {row['best_temperature']:8.2f}"
        for row in table(c)
    ]
    lines += ["", "replaced: of masked positions; entropy: of log V. Residuals, root mean square over u:"]
    for name, (initial, rate) in {"proposed": (c.initial, c.rate), "paper's": PAPER}.items():
        rest = c.residuals(initial, rate)
        lines.append(
            f"{name:9} T0 {initial:g}, tau {rate:g}: replaced {rest['replaced']:.3f}, entropy {rest['entropy']:.3f}"
        )
    lines += [f"note      {note}" for note in notes(c)]
    return "\n".join([*lines, "", " ".join(f"--set {shlex.quote(override)}" for override in c.overrides)])


def to_json(c: Calibration) -> dict[str, Any]:
    """Return every figure of the result."""
    return {
        "initial": c.initial,
        "rate": c.rate,
        "set": c.overrides,
        "match": c.match,
        "residuals": c.residuals(c.initial, c.rate),
        "residuals_of_paper": c.residuals(*PAPER),
        "notes": notes(c),
        "table": table(c),
        "auxiliary": {"hash": c.auxiliary.hash, "encoder": c.auxiliary.encoder},
        "sample": asdict(c.sample),
        "response": {"temperature": NODES_K.tolist()}
        | dict(zip(MEASURES, c.response.measured_2K.tolist(), strict=True)),
        "reference": c.reference.to_json(),
    }


def _pair(measures_2: np.ndarray) -> str:
    return f"replaced {measures_2[0]:.1%}, entropy {measures_2[1]:.1%} of log V"


def write_plot(c: Calibration, path: Path) -> None:
    """Draw three panels over u into an SVG file, or another format that the file's name ends in."""
    u_P, u = c.reference.u_P, np.linspace(0.0, 1.0, 201)
    temperature = fit.temperatures(u, c.initial, c.rate)
    with matplotlib.rc_context({**STYLE, "figure.facecolor": "white"}):
        figure = Figure(figsize=(9.5, 2.9), layout="constrained")
        panels = figure.subplots(1, 3)
        for axes, title, aim_P, ours in zip(panels, TITLES, c.target_2P, c.response.at(temperature), strict=False):
            axes.plot(u_P, aim_P, "o", color=GREY, markersize=3, label=f"reference ({c.match})")
            axes.plot(u, ours, color=BLUE, linewidth=1.6, label="this auxiliary, proposed T")
            axes.yaxis.set_major_formatter(FORMATS["percent"])
            axes.set_title(title, fontsize=9)
        best_P = fit.best_temperatures(c.response, c.target_2P)
        panels[2].plot(u_P, best_P, "o", color=ORANGE, markersize=3, label="nearest T")
        panels[2].plot(u, temperature, color=BLUE, linewidth=1.6, label=f"T0 {c.initial:g}, τ {c.rate:g}")
        panels[2].set_title("temperature", fontsize=9)
        for axes in panels:
            axes.set_xlim(0, 1)
            axes.set_xlabel("u")
            axes.legend(fontsize=8)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
