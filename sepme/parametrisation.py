"""Which numbers training moves, and the weight change `Delta_l [d_out, d_in]` they stand for."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

Factors = tuple[dict[str, Tensor], dict[str, Tensor]]


class Parametrisation(nn.Module, ABC):
    """Trainable parameters, one per layer, in the order of `paths`."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.paths = tuple(parameters)
        self.values = nn.ParameterList(nn.Parameter(p.clone()) for p in parameters.values())

    def items(self) -> Iterator[tuple[str, Tensor]]:
        return zip(self.paths, self.values, strict=True)

    @abstractmethod
    def change(self) -> dict[str, Tensor]:
        """`Delta_l [d_out, d_in]` by module path, differentiable."""

    @abstractmethod
    def factors(self) -> Factors:
        """`(down [q, d_in], up [d_out, q])` by module path, for a `ConceptDelta`."""


class LowRank(Parametrisation):
    """`Delta_l = B_l Q`: Q fixed and shared, B learned. A LoRA pair (method, claim 1)."""

    def __init__(self, basis: Tensor, up: Mapping[str, Tensor]) -> None:
        super().__init__(up)
        self.register_buffer("basis", basis)

    def change(self) -> dict[str, Tensor]:
        return {path: up @ self.basis for path, up in self.items()}

    def factors(self) -> Factors:
        return dict.fromkeys(self.paths, self.basis), {p: up.detach() for p, up in self.items()}


class Dense(Parametrisation):
    """`Delta_l = (w_l x beta S)^T` (eq. 9, 10): w `[d_out, free]` is learned."""

    def __init__(self, basis: Tensor, beta: float, d_out: Mapping[str, int]) -> None:
        super().__init__({path: basis.new_zeros(n, basis.shape[1]) for path, n in d_out.items()})
        self.beta = beta
        self.register_buffer("basis", basis)

    def change(self) -> dict[str, Tensor]:
        return {path: self.beta * w @ self.basis.T for path, w in self.items()}

    def factors(self) -> Factors:
        # S = Q^T R with orthonormal rows Q, so w S^T = (w R^T) Q: the same change as a LoRA pair.
        orthonormal, triangular = torch.linalg.qr(self.basis.double())
        down = orthonormal.T.to(self.basis.dtype)
        ups = {
            p: (self.beta * w.detach().double() @ triangular.T).to(w.dtype) for p, w in self.items()
        }
        return dict.fromkeys(self.paths, down), ups


class Full(Parametrisation):
    """Every entry of every given weight, undecoupled: for what must never come back."""

    def __init__(self, shapes: Mapping[str, torch.Size], like: Tensor) -> None:
        super().__init__({path: like.new_zeros(shape) for path, shape in shapes.items()})

    def change(self) -> dict[str, Tensor]:
        return dict(self.items())

    def factors(self) -> Factors:
        down = {p: torch.eye(w.shape[1], dtype=w.dtype, device=w.device) for p, w in self.items()}
        return down, {p: w.detach() for p, w in self.items()}
