"""Orthonormal bases of a weight's outputs and inputs, in which a few entries train.

A rotation is a matrix Q [n, r] with orthonormal columns: `to` is `x @ Q`, `back` is `z @ Q.T`. Fast
transforms never make it.
"""

import math
from collections.abc import Callable
from typing import Any

import torch


class Rotation:
    """Q. inputs: n. outputs: r."""

    name: str

    def __init__(self, inputs: int, outputs: int | None = None) -> None:
        self.inputs = inputs
        self.outputs = inputs if outputs is None else outputs

    def to(self, x: torch.Tensor) -> torch.Tensor:
        """`x @ Q`, [..., n] to [..., r]."""
        raise NotImplementedError

    def back(self, z: torch.Tensor) -> torch.Tensor:
        """`z @ Q.T`, [..., r] to [..., n]."""
        raise NotImplementedError

    def features(self, x: torch.Tensor, features: torch.Tensor | None) -> torch.Tensor:
        """The columns `features` of `x @ Q`; None: all."""
        rotated = self.to(x)
        return rotated if features is None else rotated.index_select(-1, features)

    def moved(self, device: torch.device) -> "Rotation":
        """The same on another device."""
        return self

    def told(self) -> dict[str, Any]:
        return {"name": self.name, "inputs": self.inputs, "outputs": self.outputs}


class Identity(Rotation):
    """No rotation."""

    name = "identity"

    def to(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def back(self, z: torch.Tensor) -> torch.Tensor:
        return z


class Cosine(Rotation):
    """The orthonormal discrete cosine transform: Q[i, k] = c_k cos(pi (2 i + 1) k / 2 n), c_0 =
    sqrt(1 / n), the others sqrt(2 / n). By FFT, in fp32 or wider (Makhoul, 1980).
    """

    name = "dct"

    def to(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.to(torch.promote_types(torch.float32, x.dtype))
        folded = torch.cat([wide[..., ::2], wide[..., 1::2].flip(-1)], -1)
        found = (torch.fft.fft(folded) * self._turn(wide).conj()).real
        return (found * self._norm(wide)).to(x.dtype)

    def back(self, z: torch.Tensor) -> torch.Tensor:
        wide = z.to(torch.promote_types(torch.float32, z.dtype))
        plain = wide / self._norm(wide)
        mirrored = torch.nn.functional.pad(plain[..., 1:].flip(-1), (1, 0))
        folded = torch.fft.ifft(torch.complex(plain, -mirrored) * self._turn(wide)).real
        half = (self.inputs + 1) // 2
        found = torch.empty_like(folded)
        found[..., ::2] = folded[..., :half]
        found[..., 1::2] = folded[..., half:].flip(-1)
        return found.to(z.dtype)

    def _turn(self, like: torch.Tensor) -> torch.Tensor:
        """exp(i pi k / 2 n), [n]."""
        k = torch.arange(self.inputs, dtype=like.dtype, device=like.device)
        return torch.polar(torch.ones_like(k), k * (math.pi / (2 * self.inputs)))

    def _norm(self, like: torch.Tensor) -> torch.Tensor:
        norm = like.new_full((self.inputs,), math.sqrt(2 / self.inputs))
        norm[0] = math.sqrt(1 / self.inputs)
        return norm


class Hadamard(Rotation):
    """The orthonormal Walsh-Hadamard transform, in blocks of the largest power of two that divides
    n. It is its own inverse.
    """

    name = "hadamard"

    def __init__(self, inputs: int) -> None:
        super().__init__(inputs)
        self.block = inputs & -inputs

    def to(self, x: torch.Tensor) -> torch.Tensor:
        made = x.to(torch.promote_types(torch.float32, x.dtype))
        step = 1
        while step < self.block:
            pairs = made.reshape(*x.shape[:-1], -1, 2, step)
            first, second = pairs[..., 0, :], pairs[..., 1, :]
            made = torch.stack([first + second, first - second], -2)
            step *= 2
        return (made.reshape(x.shape) / math.sqrt(self.block)).to(x.dtype)

    def back(self, z: torch.Tensor) -> torch.Tensor:
        return self.to(z)


class Dense(Rotation):
    """Any matrix [n, r] with orthonormal columns, which is kept: of an SVD, say."""

    name = "dense"

    def __init__(self, matrix: torch.Tensor) -> None:
        if matrix.dim() != 2 or matrix.size(0) < matrix.size(1):
            raise ValueError(f"matrix: expected [n, r] with r <= n, got {tuple(matrix.shape)}")
        super().__init__(*matrix.shape)
        self.matrix = matrix.detach()

    def to(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.matrix.to(x.dtype)

    def back(self, z: torch.Tensor) -> torch.Tensor:
        return z @ self.matrix.T.to(z.dtype)

    def features(self, x: torch.Tensor, features: torch.Tensor | None) -> torch.Tensor:
        if features is None:
            return self.to(x)
        return x @ self.matrix.index_select(1, features).to(x.dtype)

    def moved(self, device: torch.device) -> "Dense":
        return self if self.matrix.device == device else Dense(self.matrix.to(device))


class Basis:
    """`left @ S @ right.T` is a weight [out, in] whose coordinates are S.

    left: of the outputs, right: of the inputs.
    """

    def __init__(self, left: Rotation, right: Rotation) -> None:
        self.left, self.right = left, right

    @property
    def shape(self) -> tuple[int, int]:
        """Of the coordinates S."""
        return self.left.outputs, self.right.outputs

    def coordinates(self, matrix: torch.Tensor) -> torch.Tensor:
        """S of a matrix [out, in]: of a weight, or of its gradient."""
        return self.left.to(self.right.to(matrix).T).T

    def matrix(self, coordinates: torch.Tensor) -> torch.Tensor:
        """The matrix [out, in] of coordinates S."""
        return self.left.back(self.right.back(coordinates).T).T

    def moved(self, device: torch.device) -> "Basis":
        return Basis(self.left.moved(device), self.right.moved(device))

    def told(self) -> dict[str, Any]:
        return {"left": self.left.told(), "right": self.right.told()}

    @classmethod
    def svd(cls, matrix: torch.Tensor, rank: int | None = None) -> "Basis":
        """Of the singular vectors of a matrix [out, in], the first `rank` of them."""
        wide = matrix.detach().to(torch.promote_types(torch.float32, matrix.dtype))
        left, _, right = torch.linalg.svd(wide, full_matrices=False)
        return cls(Dense(left[:, :rank].contiguous()), Dense(right[:rank].T.contiguous()))

    @classmethod
    def of_gradients(cls, gradients: Any) -> "Basis":
        """In which gradients [out, in] of several batches are concentrated: the eigenvectors of the
        sum of `g @ g.T` and of `g.T @ g` (SparseGrad, Chekalina et al., 2024: the first two
        factors of a higher-order SVD).
        """
        gradients = [each.detach() for each in gradients]
        outputs = sum(each @ each.T for each in gradients)
        inputs = sum(each.T @ each for each in gradients)
        found = [torch.linalg.eigh(each)[1].flip(-1).contiguous() for each in (outputs, inputs)]
        return cls(Dense(found[0]), Dense(found[1]))


def _of_sizes(left: Callable[[int], Rotation], right: Callable[[int], Rotation]) -> Callable:
    return lambda weight: Basis(left(weight.size(0)), right(weight.size(1)))


# By name: from a weight [out, in] to its basis.
BASES: dict[str, Callable[[torch.Tensor], Basis]] = {
    "svd": Basis.svd,
    "dct": _of_sizes(Cosine, Cosine),
    "hadamard": _of_sizes(Hadamard, Hadamard),
    "hadamard_inputs": _of_sizes(Identity, Hadamard),
}
