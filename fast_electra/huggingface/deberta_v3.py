"""DeBERTaV3's generator and discriminator, where transformers computes something else or drops their heads."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, nn

from fast_electra.huggingface.families import Vocabulary
from fast_electra.huggingface.folder import tensors_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

POSITIONS = "embeddings.position_embeddings.weight"  # of the enhanced mask decoder; transformers does not read it
HEAD = "mask_predictions."  # of the discriminator; transformers does not read it either


def positions_of(folder: Path, config: "PreTrainedConfig") -> Tensor | None:
    """Return the position embeddings [L, D] of DeBERTaV3's generator; None if a directory holds another model."""
    if config.model_type != "deberta-v2" or getattr(config, "position_biased_input", True):
        return None
    return next(iter(tensors_of(folder, (POSITIONS,)).values()), None)


def prepare(folder: Path, config: "PreTrainedConfig") -> None:
    """Tell the config of a generator in Microsoft's form which of its two heads transformers has to build."""
    if config.model_type == "deberta-v2" and tensors_of(folder, ("lm_predictions.lm_head.dense.bias",)):
        config.legacy = False


def generator(model: "PreTrainedModel", positions_LD: Tensor) -> Vocabulary:
    """Take apart DeBERTaV3's generator: the last layer runs twice, on queries that know their positions.

    In transformers' own class these queries are missing, and its logits are wrong.
    """
    any_model: Any = model
    body, head = any_model.deberta, any_model.lm_predictions.lm_head
    head.positions = nn.Parameter(positions_LD)

    def hidden(ids_BL: Tensor, mask_BL: Tensor, numbers_M: Tensor) -> Tensor:
        states_BLD = body(input_ids=ids_BL, attention_mask=mask_BL, output_hidden_states=True).hidden_states[-2]
        encoder, query_BLD = body.encoder, states_BLD + head.positions[: ids_BL.shape[1]]
        more = {"relative_pos": encoder.get_rel_pos(states_BLD), "rel_embeddings": encoder.get_rel_embedding()}
        attended = encoder.get_attention_mask(mask_BL)
        for _ in range(2):
            query_BLD = encoder.layer[-1](states_BLD, attended, query_states=query_BLD, **more)[0]
        rows_MD = query_BLD.flatten(0, 1).index_select(0, numbers_M)
        result: Tensor = head.LayerNorm(F.gelu(head.dense(rows_MD)))
        return result

    return Vocabulary(hidden, lambda: any_model.get_input_embeddings().weight, head.bias)
