"""Optimizers: Muon for the matrices of a model's layers with AdamW for the rest, and how parameters are grouped.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) replaces the momentum of a matrix by the nearest
matrix whose singular values are all 1, so that directions which gradients seldom show are learnt as fast as the others.
The update is scaled by 0.2 sqrt(max(rows, columns)), which gives it the size of AdamW's (Liu et al. 2025,
arXiv 2502.16982), so a learning rate means the same for both. NorMuon (Li et al. 2025, arXiv 2510.05491) also evens out
the rows of an update by a running mean of their squares.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch.optim.adamw import adamw

from ..checks import ensure

OptimizerName = Literal["adamw", "muon", "normuon"]

# Coefficients of five steps of x -> a x + b x^3 + c x^5, which bring singular values between 0.001 and 1 into 0.876 to
# 1.124, the best that five such steps can do (Amsel et al. 2025, arXiv 2505.16932, "Polar Express").
POLAR_STEPS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)
# Each step but the last takes its values 2 % smaller: the bound of one step is the start of the next, and bf16 rounds
# by up to 0.4 %. Without it a matrix of rank 7 came out 227 times too large, and a layer's weights grew to 1e6. (The
# paper's own remedy, section 4.4 there, with 1 %.)
_STEP_MARGIN = 1.02
_NORM_MARGIN = 1.01  # bf16 rounds, and a singular value above 1 would grow without limit
_UPDATE_RMS = 0.2  # of AdamW's updates in a stable phase, measured in arXiv 2502.16982
_ROW_BETA = 0.95  # NorMuon's, as published
_EPSILON = 1e-8


def orthogonalise(matrices: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Return the nearest semi-orthogonal matrices, nearly: singular values between 0.876 and 1.124.

    Args:
        matrices: (count, rows, columns) of one shape, computed in one batch.
        dtype: of the products; None: bf16 on a GPU, which is precise enough and fast there, and float32 on a CPU, which
            mostly emulates bf16.
    """
    if dtype is None:
        dtype = torch.float32 if matrices.device.type == "cpu" else torch.bfloat16
    x = matrices.to(dtype)
    tall = x.size(-2) > x.size(-1)
    if tall:  # the products are as large as the shorter side
        x = x.mT
    x = x / (x.float().flatten(1).norm(dim=1)[:, None, None] * _NORM_MARGIN + 1e-7).to(dtype)
    for step, (a, b, c) in enumerate(POLAR_STEPS):
        if step < len(POLAR_STEPS) - 1:
            a, b, c = a / _STEP_MARGIN, b / _STEP_MARGIN**3, c / _STEP_MARGIN**5
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


class MuonAdamW(torch.optim.Optimizer):
    """Muon for the groups whose `kind` is muon or normuon, AdamW for those whose `kind` is adamw.

    Weight decay is decoupled in both: weights shrink by the learning rate times `weight_decay` in a step.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], momentum: float = 0.95) -> None:
        """Take groups with `params`, `kind`, `lr`, `weight_decay`, and for AdamW `betas` and `eps`.

        Args:
            groups: see above.
            momentum: of Muon, with Nesterov's look ahead.
        """
        super().__init__(groups, {"momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Change the weights by one step; a parameter without a gradient stays."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            known = [parameter for parameter in group["params"] if parameter.grad is not None]
            if group["kind"] == "adamw":
                self._step_adamw(group, known)
                continue
            shapes: dict[torch.Size, list[torch.Tensor]] = defaultdict(list)
            for parameter in known:
                shapes[parameter.shape].append(parameter)
            for alike in shapes.values():
                self._step_muon(group, alike)
        return loss

    def _step_adamw(self, group: dict[str, Any], parameters: list[torch.Tensor]) -> None:
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
        states = [self.state[parameter] for parameter in parameters]
        if parameters:
            adamw(
                parameters,
                [parameter.grad for parameter in parameters],  # type: ignore[misc]
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                [state["step"] for state in states],
                fused=True,
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )

    def _step_muon(self, group: dict[str, Any], parameters: list[torch.Tensor]) -> None:
        """Step the matrices of one shape, whose updates are orthogonalised in one batch."""
        momentum, rate = group["momentum"], group["lr"]
        updates = []
        for parameter in parameters:
            state, gradient = self.state[parameter], parameter.grad
            assert gradient is not None
            if not state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            buffer = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
            updates.append(gradient.lerp(buffer, momentum))
        stacked = orthogonalise(torch.stack(updates))
        if group["kind"] == "normuon":
            stacked = self._even_out_rows(parameters, stacked)
        scale = _UPDATE_RMS * max(parameters[0].shape) ** 0.5
        for parameter, update in zip(parameters, stacked, strict=True):
            parameter.mul_(1 - rate * group["weight_decay"]).add_(update, alpha=-rate * scale)

    def _even_out_rows(self, parameters: list[torch.Tensor], updates: torch.Tensor) -> torch.Tensor:
        """Return the updates with rows divided by the root of their running mean square, at the norm they had."""
        squares = updates.square().mean(dim=2)  # (count, rows)
        roots = []
        for parameter, square in zip(parameters, squares, strict=True):
            state = self.state[parameter]
            if "row_square" not in state:
                state["row_square"] = torch.zeros_like(square)
            roots.append(state["row_square"].lerp_(square, 1 - _ROW_BETA).sqrt())
        evened = updates / (torch.stack(roots)[:, :, None] + _EPSILON)
        norms = updates.flatten(1).norm(dim=1) / evened.flatten(1).norm(dim=1).clamp_min(_EPSILON)
        return evened * norms[:, None, None]


def check_optimizer(config: Any) -> None:
    """Check the keys of the optimizer against each other.

    Raises:
        InputError: Muon beside another choice of the Trainer's, or a rate of embeddings that is not positive.
    """
    usual = type(config).__dataclass_fields__["optim"].default
    ensure(
        config.optimizer == "adamw" or config.optim in (None, usual, getattr(usual, "value", usual)),
        f"optim={config.optim}, optimizer={config.optimizer}: give one of the two. optim is the Trainer's own key.",
    )
    rate = config.embedding_learning_rate
    ensure(
        rate is None or config.optimizer != "adamw",
        f"embedding_learning_rate={rate}: belongs to optimizer: muon or normuon. Leave it out.",
    )
    ensure(rate is None or rate > 0, f"embedding_learning_rate={rate}: must be positive.")


def parameter_groups(model: torch.nn.Module, config: Any) -> list[dict[str, Any]]:
    """Return the groups of a Llama's parameters: matrices of layers; embeddings and head; norms and biases.

    Args:
        model: to be trained.
        config: with `optimizer`, `learning_rate`, `embedding_learning_rate`, `weight_decay` and AdamW's keys.
    """
    adamw_keys = {"kind": "adamw", "betas": (config.adam_beta1, config.adam_beta2), "eps": config.adam_epsilon}
    matrices: list[torch.nn.Parameter] = []
    tables: list[torch.nn.Parameter] = []
    vectors: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_table = "embed_tokens" in name or "lm_head" in name
            (vectors if parameter.ndim < 2 else tables if is_table else matrices).append(parameter)
    rate = config.learning_rate
    return [
        {"params": matrices, "kind": config.optimizer, "lr": rate, "weight_decay": config.weight_decay},
        {"params": tables, **adamw_keys, "lr": config.embedding_learning_rate or rate, "weight_decay": 0.0},
        {"params": vectors, **adamw_keys, "lr": rate, "weight_decay": 0.0},
    ]


def describe_optimizer(config: Any) -> str:
    """Return which optimizer trains what, for the banner."""
    if config.optimizer == "adamw":
        return str(getattr(config.optim, "value", config.optim))
    rate = config.embedding_learning_rate or config.learning_rate
    return f"{config.optimizer} for the layers' matrices; AdamW for embeddings and head (peak {rate:g}) and for norms"
