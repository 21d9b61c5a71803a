"""The two models of joint training in one module, with their token embedding shared or not (section 2)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fast_electra.model.encoder import Encoder, EncoderSettings
from fast_electra.model.heads import Discriminator, MaskedLanguageModel

EMBEDDING = "encoder.embedding.weight"
SHARINGS = ("shared", "gradient_disentangled", "none")  # of the token embedding; see `JointModel`


class JointModel(nn.Module):
    """An auxiliary model and a main model, to be trained together by one optimizer.

    `sharing` of the token embedding: "shared" (ELECTRA: one table, trained by both losses), "gradient_disentangled"
    (DeBERTaV3: the main model reads the auxiliary's table as a constant, plus a table of its own that starts at zero),
    or "none".
    """

    def __init__(self, settings: EncoderSettings, auxiliary_layers: int, sharing: str, seed: int = 0) -> None:
        super().__init__()
        self.sharing = sharing
        self.auxiliary = MaskedLanguageModel(settings.model_copy(update={"layers": auxiliary_layers}), seed)
        self.main = Discriminator.new(settings, seed)
        encoder = self.main.encoder
        assert isinstance(encoder, Encoder)
        if sharing == "shared":
            encoder.embedding = self.auxiliary.encoder.embedding
        elif sharing == "gradient_disentangled":
            encoder.embedding = DisentangledEmbedding(self.auxiliary.encoder.embedding)

    def forward(self, tokens_BL: Tensor, real_BL: Tensor | None, positions_M: Tensor | None = None) -> Tensor:
        """The auxiliary's logits [M, V] where `positions_M` are given; else the main model's [B, L]."""
        if positions_M is not None:
            logits_MV: Tensor = self.auxiliary(tokens_BL, real_BL, positions_M)
            return logits_MV
        logits_BL: Tensor = self.main(tokens_BL, real_BL)
        return logits_BL

    def split(self, weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The weights of the main model and of the auxiliary, each complete, from those of both by parameter name."""
        main, auxiliary = (
            {name.removeprefix(part): weight for name, weight in weights.items() if name.startswith(part)}
            for part in ("main.", "auxiliary.")
        )
        if self.sharing == "shared":
            main[EMBEDDING] = auxiliary[EMBEDDING].clone()
        elif self.sharing == "gradient_disentangled":
            main[EMBEDDING] = main[EMBEDDING] + auxiliary[EMBEDDING]
        return main, auxiliary


class DisentangledEmbedding(nn.Embedding):
    """E_main = stop_gradient(E_auxiliary) + E_own (He et al., 2021b): the losses do not pull on one table."""

    def __init__(self, base: nn.Embedding) -> None:
        super().__init__(base.num_embeddings, base.embedding_dim)
        self._base = (base,)  # not a submodule: its parameter has one name, the auxiliary's
        with torch.no_grad():
            self.weight.zero_()

    def forward(self, tokens_BL: Tensor) -> Tensor:
        return F.embedding(tokens_BL, self._base[0].weight.detach()) + super().forward(tokens_BL)
