"""SelectiveEmbedding: an embedding of which only the selected rows train; the other rows are never
touched.
"""

import torch
from torch import nn

from ..functional import selective_embedding
from ..selection import Selection
from .foreign import refuse_tracing
from .linear import Adopted
from .state import NAME


class SelectiveEmbedding(Adopted, nn.Embedding):
    """`nn.Embedding` of which only the selected rows train.

    weight: [num_embeddings, embedding_dim]; reading it synchronises, and leads the reader's
    gradient to values.
    values: [R, embedding_dim]. No tensor of the table's size is made in forward, backward or step.
    max_norm, sparse and scale_grad_by_freq are refused by `from_embedding`.
    """

    @classmethod
    def from_embedding(cls, embedding: nn.Embedding, selection: Selection) -> "SelectiveEmbedding":
        """A selective module on `embedding`'s own weight (not copied). selection: `Rows`."""
        if type(embedding) is not nn.Embedding:
            raise TypeError(f"embedding: expected an nn.Embedding, got {type(embedding).__name__}")
        check_embedding("embedding", embedding)
        return cls._from(embedding, selection)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        parameters, state = self._parameters, self.__dict__.get(NAME)
        if state is None:
            return type(self).forward(self, input)  # see SelectiveLinear
        self.sync_to_run()
        weight, values = parameters["weight"], parameters["values"]
        try:
            return selective_embedding(input, weight, values, state.selection, self.padding_idx)
        except TypeError:
            refuse_tracing(state.label, (input,))
            raise


def check_embedding(label: str, embedding: nn.Embedding | nn.EmbeddingBag) -> None:
    """Raise ValueError for an option whose effect on unselected rows or on the gradient cannot be
    kept.
    """
    for option in ("max_norm", "sparse", "scale_grad_by_freq"):
        if getattr(embedding, option):
            raise ValueError(
                f"{label}: {option}={getattr(embedding, option)} is not supported with selected"
                " entries; make the embedding without it"
            )
