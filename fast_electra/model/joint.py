"""Both models of joint training in one module. They may share their token embedding (section 2)."""

import torch.nn.functional as F
from torch import Tensor, nn

from fast_electra.batch import Layout
from fast_electra.model.encoder import Encoder, EncoderSettings
from fast_electra.model.heads import Discriminator, MaskedLanguageModel

EMBEDDING = "encoder.embedding.weight"
SHARINGS = ("shared", "gradient_disentangled", "none")  # of the token embedding; see `JointModel`


class JointModel(nn.Module):
    """An auxiliary model and a main model that one optimizer trains together."""

    def __init__(self, settings: EncoderSettings, auxiliary_layers: int, sharing: str, seed: int = 0) -> None:
        """Build both models. `settings` are those of the main model, and of the auxiliary except for its layers.

        Sharing "shared" is ELECTRA's: both losses train one embedding table. With "gradient_disentangled" (DeBERTaV3)
        the main model adds a table of its own, which starts at zero, to the auxiliary's, which is a constant for it.
        "none" gives each model its own.
        """
        super().__init__()
        self.sharing = sharing
        self.auxiliary = MaskedLanguageModel(settings.model_copy(update={"layers": auxiliary_layers}), seed)
        self.main = Discriminator.new(settings, seed)
        encoder, embedding = self.main.encoder, self.auxiliary.encoder.embedding
        assert isinstance(encoder, Encoder)
        if sharing == "shared":
            encoder.embedding = embedding
        elif sharing == "gradient_disentangled":
            encoder.embedding = DisentangledEmbedding(embedding)

    def forward(self, tokens_T: Tensor, layout: Layout, positions_M: Tensor | None = None) -> Tensor:
        """Return the auxiliary's logits [M, V] if `positions_M` are given; else the main model's logits [T]."""
        if positions_M is None:
            logits: Tensor = self.main(tokens_T, layout)
        else:
            logits = self.auxiliary(tokens_T, layout, positions_M)
        return logits

    def split(self, weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the complete weights of the main model and of the auxiliary from the module's weights by name."""
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
    """E_main = stop_gradient(E_auxiliary) + E_own (He et al., 2021b). No table gets gradients of both losses."""

    def __init__(self, base: nn.Embedding) -> None:
        """Add to `base`, the embedding of the auxiliary."""
        super().__init__(base.num_embeddings, base.embedding_dim)
        self._base = (base,)  # in a tuple, so that it is no submodule: its parameter has one name, the auxiliary's
        nn.init.zeros_(self.weight)

    def forward(self, tokens_T: Tensor) -> Tensor:
        """Return embeddings [T, E]."""
        return F.embedding(tokens_T, self._base[0].weight.detach()) + super().forward(tokens_T)
