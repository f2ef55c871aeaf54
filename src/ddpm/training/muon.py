"""The Muon optimizer (Jordan et al. 2024), for networks with convolutions."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate
from torch.optim import Optimizer
from torch.optim.adam import adam

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""coefficients a, b, c of X <- a·X + (b·A + c·A²)·X with A = X·Xᵀ, from the authors' code"""
ROUNDS = 5
"""of this iteration"""


class Muon(Optimizer):
    """Makes the singular values of the update of each matrix about equal; biases and the scales of norms get Adam.

    A convolution's weight is a matrix of its output channels by all other dimensions. Each update of a matrix is scaled
    to the typical size of AdamW's updates (Liu et al. 2025), so one learning rate fits all weights. `torch.optim.Muon`
    takes matrices alone.

    Args:
        params: the weights.
        lr: learning rate.
        momentum: decay of the average of a matrix's gradients, with Nesterov's look-ahead.
        betas: Adam's decays of the averages of gradients and of their squares.
        eps: Adam's ε.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
    ):
        super().__init__(params, {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all weights that have a gradient, and return what `closure` returns, which computes the gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            for weight in weights:
                if weight.ndim >= 2:
                    self._update_matrix(weight, group)
            self._update_vectors([weight for weight in weights if weight.ndim < 2], group)
        return loss

    def _update_matrix(self, weight: Tensor, group: dict[str, Any]) -> None:
        gradient, state = weight.grad, self.state[weight]
        assert gradient is not None
        if not state:
            state["mean"] = torch.zeros_like(gradient)
        state["mean"].lerp_(gradient, 1 - group["momentum"])
        whole = whole_tensor(gradient.lerp(state["mean"], group["momentum"]))
        matrix = whole.flatten(1)
        size = 0.2 * math.sqrt(max(matrix.shape))  # the root mean square of AdamW's updates is about 0.2
        update = orthogonalized(matrix).view(whole.shape)
        weight.add_(part_like(gradient, update), alpha=-group["lr"] * size)

    def _update_vectors(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        if not weights:
            return
        states = [self.state[weight] for weight in weights]
        for weight, state in zip(weights, states, strict=True):
            if not state:
                state["step"] = torch.zeros(())
                state["mean"], state["square"] = torch.zeros_like(weight), torch.zeros_like(weight)
        means, squares, steps = ([state[key] for state in states] for key in ("mean", "square", "step"))
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        settings = {"lr": group["lr"], "eps": group["eps"], "weight_decay": 0.0, "amsgrad": False, "maximize": False}
        beta1, beta2 = group["betas"]
        adam(weights, gradients, means, squares, [], steps, foreach=True, beta1=beta1, beta2=beta2, **settings)


def whole_tensor(tensor: Tensor) -> Tensor:
    """Return all of a tensor of which this process may have a part (FSDP)."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_like(tensor: Tensor, whole: Tensor) -> Tensor:
    """Return the part of `whole` that this process has of `tensor`; all of it without FSDP."""
    if not isinstance(tensor, DTensor):
        return whole
    same_everywhere = DTensor.from_local(whole, tensor.device_mesh, [Replicate()], run_check=False)
    return same_everywhere.redistribute(placements=tensor.placements)


def orthogonalized(matrix: Tensor) -> Tensor:
    """Return U·S·Vᵀ of a matrix U·Σ·Vᵀ, [M, N], with all singular values S near 1 (0.7 to 1.2).

    This takes five rounds of a Newton-Schulz iteration. A singular value that is far smaller than the largest stays
    small.
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(ROUNDS):
        gram = x @ x.T
        polynomial = torch.addmm(gram, gram, gram, beta=b, alpha=c)  # b·A + c·A²
        x = torch.addmm(x, polynomial, x, beta=a)
    return x.T if tall else x
