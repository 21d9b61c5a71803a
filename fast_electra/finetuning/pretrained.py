"""What is fine-tuned: one of our models, or any encoder of Hugging Face, from its folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from fast_electra.corpus.tokenizer import Tokenizer
from fast_electra.finetuning import huggingface
from fast_electra.finetuning.config import FineTuningSettings
from fast_electra.finetuning.examples import Encode, shortened
from fast_electra.finetuning.tasks import Task
from fast_electra.huggingface.folder import holds_model
from fast_electra.model.encoder import EncoderSettings
from fast_electra.model.files import DESCRIPTION, KINDS, describe
from fast_electra.model.heads import SequenceClassifier
from fast_electra.objectives.objective import Export, export
from fast_electra.run_folder import model_in, open_trained, run_above
from fast_electra.run_settings import SECTION
from fast_electra.settings import UserError

REMEDY = "name another with --checkpoint"


class Pretrained(NamedTuple):
    """A model with a new head for a task, and what goes with it."""

    model: nn.Module  # (tokens_T, layout) -> [B, C]
    encode: Encode
    title: str  # what it is, in words
    tokenizer_hash: str  # "" for another tokenizer than ours
    exports: Callable[[dict[str, Tensor]], list[Export]]


def open_pretrained(settings: FineTuningSettings, task: Task) -> Pretrained:
    """Open the folder `settings.pretrained` in fp32 on the CPU, with a new head that the seed determines.

    Raises:
        UserError: the folder holds no model, or a damaged one, or one that does not fit its tokenizer.
    """
    place = _place(settings)
    if (place / DESCRIPTION).exists():
        return _ours(place, settings, task)
    return Pretrained(*huggingface.open_classifier(place, settings, task))


def model_hash(settings: FineTuningSettings) -> Any:
    """Return the hash of the model in the folder `settings.pretrained`, or of each file of Hugging Face's weights."""
    place = _place(settings)
    description = describe(place, REMEDY)
    return huggingface.hashes(place) if description is None else description["hash"]


def _place(settings: FineTuningSettings) -> Path:
    folder = Path(settings.pretrained)
    for place in (folder, folder / "model"):
        if (place / DESCRIPTION).exists() or holds_model(place):
            return place
    raise UserError(
        f"{folder} holds no model: a run folder has model/{DESCRIPTION}, and a directory of Hugging Face config.json "
        f"with a model_type; {REMEDY}"
    )


def tokenizer_of(pretrained: str) -> str | None:
    """Return the folder of the tokenizer that the run of one of our models names; None if there is no such run."""
    model = model_in(Path(pretrained))
    run = run_above(model) if (model / DESCRIPTION).exists() else None
    return str(run.tokenizer) if run and run.tokenizer else None


def _ours(folder: Path, settings: FineTuningSettings, task: Task) -> Pretrained:
    flag = f"--set {SECTION}.tokenizer=FOLDER"
    found, description, tokenizer, *_ = open_trained(folder, tuple(KINDS), REMEDY, settings.tokenizer, flag)
    dropout = {"dropout": settings.dropout, "attention_dropout": settings.dropout}
    saved = EncoderSettings(**description["encoder"]).model_copy(update=dropout)
    if settings.initialization == "random":
        model = SequenceClassifier.new(saved, task.outputs, settings.seed)
    else:
        plain = saved.model_copy(update={"initialization": "bert"})  # no profile: weights follow
        model = SequenceClassifier.new(plain, task.outputs, settings.seed)
        model.encoder.load_state_dict(found.encoder.state_dict())

    def exports(weights: dict[str, Tensor]) -> list[Export]:
        labels = list(task.labels)
        return [export("model", "classifier", saved, weights, labels=labels, task=task.name)]

    return Pretrained(model, encoder_of(tokenizer), f"our {description['kind']} model", tokenizer.hash, exports)


def encoder_of(tokenizer: Tokenizer) -> Encode:
    """Return what frames one text as [CLS] a [SEP], and two as [CLS] a [SEP] b [SEP]."""

    def ids(text: str) -> list[int]:
        clean = text.replace("\0", "").encode("utf-8", errors="replace").decode()  # no NUL, no lone surrogate
        return tokenizer.encode(clean)

    def encode(rows: list[tuple[str, ...]], length: int) -> list[tuple[list[int], bool]]:
        cls, sep, framed = tokenizer.cls_id, tokenizer.sep_id, []
        for row in rows:
            first, second = ids(row[0]), ids(row[1]) if len(row) > 1 else None
            room = length - 2 if second is None else length - 3
            cut = len(first) + len(second or ()) > room
            if second is None:
                framed.append(([cls, *first[:room], sep], cut))
            else:
                first, second = shortened(first, second, room)
                framed.append(([cls, *first, sep, *second, sep], cut))
        return framed

    return encode
