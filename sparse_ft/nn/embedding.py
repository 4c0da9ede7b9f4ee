"""SelectiveEmbedding: an embedding of which only the selected rows train; the other rows are never touched."""

from torch import nn

from ..functional import selective_embedding
from .linear import Adopted


class SelectiveEmbedding(Adopted, nn.Embedding):
    """`nn.Embedding` of which only the selected rows train.

    weight: [num_embeddings, embedding_dim], frozen; reading it synchronises. values: [R, embedding_dim]. No tensor of the
    table's size is made in forward, backward or step. max_norm, sparse and scale_grad_by_freq are refused by `from_embedding`.
    """

    @classmethod
    def from_embedding(cls, embedding, selection):
        """A selective module on `embedding`'s own weight (not copied). selection: `Rows`."""
        if type(embedding) is not nn.Embedding:
            raise TypeError(f"embedding: expected an nn.Embedding, got {type(embedding).__name__}")
        check_embedding("embedding", embedding)
        return cls._from(embedding, selection)

    def forward(self, input):
        self.sync()
        parameters, selection = self._parameters, self._sparse_ft_state.selection
        return selective_embedding(input, parameters["weight"], parameters["values"], selection, self.padding_idx)


def check_embedding(label, embedding):
    """Raise ValueError for an option whose effect on unselected rows or on the gradient cannot be kept."""
    for option in ("max_norm", "sparse", "scale_grad_by_freq"):
        if getattr(embedding, option):
            raise ValueError(
                f"{label}: {option}={getattr(embedding, option)} is not supported with selected entries; "
                f"make the embedding without it"
            )
