"""What the vocabulary head of a masked language model of transformers multiplies, at chosen positions only.

The head's product with the vocabulary is the largest of such a model, and only masked positions need it. So the forward
methods around it are replaced on the one model that is used: the encoder's output is cut to the wanted rows, and the
vocabulary layer lets them through. No hook is left, and no class is changed.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Vocabulary(NamedTuple):
    """The last steps of a masked language model, taken apart: logits = hidden @ weight^T + bias."""

    hidden: Callable[[Tensor, Tensor, Tensor], Tensor]  # (ids_BL, mask_BL, numbers_M below B * L) -> [M, E]
    weight: Callable[[], Tensor]  # [V, E]; asked for at each use, because an engine converts weights
    bias: Tensor | None  # [V]


class _Rows:
    """The rows that a model's head reads now; None: all of them, as transformers does."""

    numbers_M: Tensor | None = None

    def __init__(self, model: "PreTrainedModel") -> None:
        """Cut the output of the model's encoder to the rows."""
        self.model = model
        encoder: Any = model.base_model
        if encoder is model:
            raise ValueError("its encoder and its head are one")
        whole = encoder.forward

        def forward(*inputs: Any, **named: Any) -> Any:
            output = whole(*inputs, **named)
            if self.numbers_M is not None:
                rows = output[0].flatten(0, 1).index_select(0, self.numbers_M)[None]
                if not hasattr(output, "keys"):
                    return (rows, *output[1:])
                output[next(iter(output.keys()))] = rows
            return output

        encoder.forward = forward

    def skip(self, module: Any, instead: Callable[..., Tensor] = lambda x, *_, **__: x) -> None:
        """Let `instead` answer for a module while rows are read."""
        whole = module.forward
        module.forward = lambda *inputs, **named: (whole if self.numbers_M is None else instead)(*inputs, **named)

    def hidden(self, ids_BL: Tensor, mask_BL: Tensor, numbers_M: Tensor) -> Tensor:
        """Return what the vocabulary layer would multiply, at the rows: [M, E]."""
        self.numbers_M = numbers_M
        try:
            hidden_ME: Tensor = self.model(input_ids=ids_BL, attention_mask=mask_BL).logits[0]
        finally:
            self.numbers_M = None
        return hidden_ME


def generic(model: "PreTrainedModel") -> Vocabulary:
    """Take apart a model whose last step is the layer that `get_output_embeddings` names: most families."""
    rows, decoder = _Rows(model), model.get_output_embeddings()
    if not isinstance(decoder, nn.Linear):
        raise ValueError("it names no linear layer as its vocabulary head")
    rows.skip(decoder)
    return Vocabulary(rows.hidden, lambda: decoder.weight, decoder.bias)


def deberta(model: "PreTrainedModel") -> Vocabulary:
    """Take apart DeBERTa: with `legacy: false` its head multiplies the embeddings by hand."""
    if getattr(model.config, "legacy", True):
        return generic(model)
    any_model: Any = model
    rows, head = _Rows(model), any_model.lm_predictions.lm_head
    rows.skip(head, lambda x, *_: head.LayerNorm(head.transform_act_fn(head.dense(x))))
    return Vocabulary(rows.hidden, lambda: any_model.get_input_embeddings().weight, head.bias)


def esm(model: "PreTrainedModel") -> Vocabulary:
    """Take apart ESM, whose bias is added behind the vocabulary layer."""
    any_model: Any = model
    rows, head = _Rows(model), any_model.lm_head
    rows.skip(head, lambda x, **_: head.layer_norm(nn.functional.gelu(head.dense(x))))
    return Vocabulary(rows.hidden, lambda: head.decoder.weight, head.bias)


def mobilebert(model: "PreTrainedModel") -> Vocabulary:
    """Take apart MobileBERT, whose vocabulary matrix lies in two parts: they are joined once."""
    any_model: Any = model
    rows, head = _Rows(model), any_model.cls.predictions
    rows.skip(head, lambda x: head.transform(x))
    joined = torch.cat([head.decoder.weight.t(), head.dense.weight]).t().contiguous()
    head.vocabulary = nn.Parameter(joined.detach())
    return Vocabulary(rows.hidden, lambda: head.vocabulary, head.decoder.bias)


FAMILIES: dict[str, Callable[["PreTrainedModel"], Vocabulary]] = {
    "deberta": deberta,
    "deberta-v2": deberta,
    "esm": esm,
    "mobilebert": mobilebert,
}
