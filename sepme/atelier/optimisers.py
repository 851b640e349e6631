"""Muon for the matrices and AdamW for the rest, and a learning rate that warms up and decays."""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

#: Coefficients of the quintic Newton-Schulz iteration (K. Jordan et al., "Muon", 2024).
_QUINTIC = (3.4445, -4.7750, 2.0315)
#: Layers at the rim of a network and embeddings, which AdamW trains.
_RIM = ("conv_in", "conv_out", "embedding", "quant_conv")


def orthogonalise(gradients: Tensor, steps: int = 5, half: bool = False) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly: gradients [n, rows, columns] -> the same.

    X <- a X + (b X X' + c (X X')^2) X drives every singular value towards 1; bfloat16 suffices.
    """
    a, b, c = _QUINTIC
    x = gradients / (gradients.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    x = x.bfloat16() if half else x
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT.contiguous() if tall else x
    for _ in range(steps):
        square = x @ x.mT
        polynomial = torch.baddbmm(square, square, square, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return (x.mT if tall else x).to(gradients.dtype)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum whose update is orthogonalised, for matrices and convolutions."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        half: bool = False,
    ) -> None:
        """`half`: orthogonalise in bfloat16."""
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "half": half})

    @torch.no_grad()
    def step(self) -> None:
        """One update; parameters of the same shape are orthogonalised together."""
        for group in self.param_groups:
            alike: dict[tuple[int, int], list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                buffer = state.setdefault("momentum", torch.zeros_like(parameter))
                buffer.lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(buffer, group["momentum"]).flatten(1)
                alike[tuple(update.shape)].append((parameter, update))
            for (rows, columns), members in alike.items():
                updates = orthogonalise(
                    torch.stack([update for _, update in members]), half=group["half"]
                )
                rate = group["lr"] * max(1, rows / columns) ** 0.5
                for (parameter, _), update in zip(members, updates, strict=True):
                    parameter.sub_(update.view_as(parameter), alpha=rate)


class Optimiser:
    """Muon on the inner matrices of `model`, AdamW on everything else, one schedule for both."""

    def __init__(
        self, model: nn.Module, muon_rate: float, adam_rate: float, half: bool = False
    ) -> None:
        named = list(model.named_parameters())
        inner = [p for n, p in named if p.ndim >= 2 and not any(word in n for word in _RIM)]
        chosen = {id(p) for p in inner}
        self.rest = [p for _, p in named if id(p) not in chosen]
        self.rates = (muon_rate, adam_rate)
        self.parts: tuple[torch.optim.Optimizer, ...] = (
            Muon(inner, muon_rate, half=half),
            torch.optim.AdamW(self.rest, adam_rate, betas=(0.9, 0.98), weight_decay=0.0),
        )

    def step(self, factor: float) -> None:
        """Update with both learning rates times `factor`, then forget the gradients."""
        torch.nn.utils.clip_grad_norm_(self.rest, 1.0)
        for part, rate in zip(self.parts, self.rates, strict=True):
            part.param_groups[0]["lr"] = rate * factor
            part.step()
            part.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """The state as named tensors, for a checkpoint."""
        return {
            f"{k}.{index}.{name}": value
            for k, part in enumerate(self.parts)
            for index, state in part.state_dict()["state"].items()
            for name, value in state.items()
        }

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `tensors` gave."""
        for k, part in enumerate(self.parts):
            whole = part.state_dict()
            for key, value in tensors.items():
                which, index, name = key.split(".")
                if int(which) == k:
                    whole["state"].setdefault(int(index), {})[name] = value
            part.load_state_dict(whole)


def rate_factor(step: int, steps: int, warm_up: int = 50, decay: float = 0.25) -> float:
    """Share of the full learning rate at `step` of `steps`: warm-up, constant, linear decay.

    The decay takes the last `decay` of all steps, down to 1 %; before it starts, `steps` may be
    changed without changing anything that was done so far.
    """
    rising = min(1.0, (step + 1) / warm_up)
    falling = min(1.0, (steps - step) / max(1.0, decay * steps))
    return rising * max(0.01, falling)


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, step: int, longest: float) -> None:
    """Exponential moving average of the weights, with a short memory in the first steps."""
    memory = min(longest, (step + 1) / (step + 10))
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - memory)
    for kept, newest in zip(average.buffers(), model.buffers(), strict=True):
        kept.copy_(newest)
