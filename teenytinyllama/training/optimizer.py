"""Optimizers: Muon for the matrices of a model's layers with AdamW for the rest, and how parameters are grouped.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) replaces the momentum of a matrix by the nearest
matrix whose singular values are all 1, so that directions which gradients seldom show are learnt as fast as the others.
The update is scaled by 0.2 sqrt(max(rows, columns)), which gives it the size of AdamW's (Liu et al. 2025,
arXiv 2502.16982), so a learning rate means the same for both. NorMuon (Li et al. 2025, arXiv 2510.05491) also evens out
the rows of an update by a running mean of their squares.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import distributed
from torch.optim.adamw import adamw

from ..checks import RunFailedError, ensure, format_bytes
from ..distributed import num_ranks, own_rank
from ..gpus import computes_bf16
from ..planning.memory import ORTHOGONALISED_ELEMENTS, optimizer_bytes

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
# published coefficients for bf16 have the same margin.)
_STEP_MARGIN = 1.02
_NORM_MARGIN = 1.01  # bf16 rounds, and a singular value above 1 would grow without limit
_UPDATE_RMS = 0.2  # of AdamW's updates in a stable phase, measured in arXiv 2502.16982
_ROW_BETA = 0.95  # NorMuon's, as published
_EPSILON = 1e-8


def orthogonalise(matrices: torch.Tensor) -> torch.Tensor:
    """Return the nearest semi-orthogonal matrices, nearly: singular values between 0.876 and 1.124.

    The products are computed in the matrices' own precision; bf16 is precise enough, and fast on a GPU.

    Args:
        matrices: (count, rows, columns) of one shape, computed in one batch.
    """
    tall = matrices.size(-2) > matrices.size(-1)
    x = matrices.mT if tall else matrices  # the products are as large as the shorter side
    x = x / (x.float().flatten(1).norm(dim=1)[:, None, None] * _NORM_MARGIN + 1e-7).to(x.dtype)
    for step, (a, b, c) in enumerate(POLAR_STEPS):
        if step < len(POLAR_STEPS) - 1:
            a, b, c = a / _STEP_MARGIN, b / _STEP_MARGIN**3, c / _STEP_MARGIN**5
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def even_out_rows(updates: torch.Tensor, row_squares: list[torch.Tensor]) -> torch.Tensor:
    """Return NorMuon's updates: rows divided by the root of their running mean square, each matrix at its old norm.

    Args:
        updates: (count, rows, columns) of one shape.
        row_squares: for each matrix the running mean square of its rows (rows,), float32; changed here.
    """
    updates = updates.float()
    squares = updates.square().mean(dim=2)
    torch._foreach_lerp_(row_squares, list(squares), 1 - _ROW_BETA)
    evened = updates / (torch.stack(row_squares).sqrt()[:, :, None] + _EPSILON)
    norms = updates.flatten(1).norm(dim=1) / evened.flatten(1).norm(dim=1).clamp_min(_EPSILON)
    return evened.mul_(norms[:, None, None])


class MuonAdamW(torch.optim.Optimizer):
    """Muon for the groups whose `kind` is muon or normuon, AdamW for those whose `kind` is adamw.

    Weight decay is decoupled in both: weights shrink by the learning rate times `weight_decay` in a step.

    Ranks share the orthogonalisation. Under DDP every rank has all momenta, orthogonalises its share of the matrices of
    each shape, and gets the others'. Under ZeRO 1 and 2 DeepSpeed puts this rank's part of all elements of a group in
    the place of its matrices (`FlatPart`), with gradients that are averaged and clipped: a rank keeps the momenta of
    its part and orthogonalises the matrices that reach into it.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], momentum: float = 0.95) -> None:
        """Take groups with `params`, `kind`, `lr`, `weight_decay`, and for AdamW `betas` and `eps`.

        Args:
            groups: see above.
            momentum: of Muon, with Nesterov's look ahead.
        """
        super().__init__(groups, {"momentum": momentum})
        self._matrices: dict[int, list[torch.Tensor]] = {}
        self._parts: dict[int, FlatPart] = {}
        for number, group in enumerate(self.param_groups):
            group["number"] = number  # DeepSpeed drops empty groups, and may step the others one at a time
            self._matrices[number] = list(group["params"])
            if group["kind"] == "adamw":
                group["fused"] = True  # load_state_dict puts the count of steps on the parameter's device for it

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
            elif known and known[0].ndim == 1:
                self._step_part(group, known[0])
            else:
                for alike in batches_of_one_shape(dict(enumerate(known)), num_ranks()):
                    self._step_matrices(group, [known[index] for index in alike])
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
                fused=group["fused"],
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )

    def _state_of(self, parameter: torch.Tensor, name: str, shape: Sequence[int]) -> torch.Tensor:
        """Return a tensor of a parameter's state; it begins with zeros."""
        state = self.state[parameter]
        if name not in state:
            state[name] = parameter.new_zeros(shape)
        found: torch.Tensor = state[name]
        return found

    def _step_matrices(self, group: dict[str, Any], parameters: list[torch.Tensor]) -> None:
        """Step whole matrices of one shape, which every rank has; each orthogonalises a share of them."""
        momentum, rate, ranks = group["momentum"], group["lr"], num_ranks()
        buffers = [self._state_of(parameter, "momentum_buffer", parameter.shape) for parameter in parameters]
        gradients: list[torch.Tensor] = [parameter.grad for parameter in parameters]  # type: ignore[misc]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        share = -(-len(parameters) // ranks)
        own = parameters[0].new_zeros((share, *parameters[0].shape), dtype=_precision_on(parameters[0].device))
        first = share * own_rank()
        mine = slice(first, first + share)
        if gradients[mine]:
            ahead = torch._foreach_lerp(gradients[mine], buffers[mine], momentum)
            torch._foreach_copy_(list(own[: len(ahead)]), ahead)
            del ahead
            own = orthogonalise(own)
        updates = _gathered(own, ranks)[: len(parameters)]
        if group["kind"] == "normuon":
            updates = even_out_rows(
                updates, [self._state_of(parameter, "row_square", parameter.shape[:1]) for parameter in parameters]
            )
        torch._foreach_mul_(parameters, 1 - rate * group["weight_decay"])
        scale = _UPDATE_RMS * max(parameters[0].shape) ** 0.5
        torch._foreach_add_(parameters, list(updates.to(parameters[0].dtype)), alpha=-rate * scale)

    def _part_of(self, group: dict[str, Any], flat: torch.Tensor) -> "FlatPart":
        number = group["number"]
        if number not in self._parts:
            self._parts[number] = FlatPart(self._matrices[number], flat)
        return self._parts[number]

    def row_squares(self, group: dict[str, Any], flat: torch.Tensor) -> dict[int, torch.Tensor]:
        """Return NorMuon's running mean squares of rows, which may be written to.

        Args:
            group: of matrices.
            flat: (s,), this rank's part of them.

        Returns:
            For each matrix that reaches into the part, by its index in the group: (rows,), float32.
        """
        sizes = self._part_of(group, flat).rows()
        rows = self._state_of(flat, "row_square", [sum(sizes.values())]).split(list(sizes.values()))
        return dict(zip(sizes, rows, strict=True))

    def _step_part(self, group: dict[str, Any], flat: torch.Tensor) -> None:
        """Step this rank's part of a group's matrices; matrices that reach into it are orthogonalised whole."""
        momentum, rate = group["momentum"], group["lr"]
        part, gradient = self._part_of(group, flat), flat.grad
        assert gradient is not None
        buffer = self._state_of(flat, "momentum_buffer", flat.shape).lerp_(gradient, 1 - momentum)
        whole = part.whole_matrices(gradient.lerp(buffer, momentum).to(_precision_on(flat.device)))
        flat.mul_(1 - rate * group["weight_decay"])
        squares = self.row_squares(group, flat) if group["kind"] == "normuon" else {}
        for alike in batches_of_one_shape(whole):
            updates = orthogonalise(torch.stack([whole[index] for index in alike]))
            if squares:
                updates = even_out_rows(updates, [squares[index] for index in alike])
            scale = _UPDATE_RMS * max(updates.shape[1:]) ** 0.5
            for index, update in zip(alike, updates, strict=True):
                here, there = part.places(index)
                flat[here].add_(update.flatten()[there], alpha=-rate * scale)


class FlatPart:
    """This rank's part of the elements of a group's matrices, which DeepSpeed lays out one after the other.

    Rank r holds the elements r s to (r + 1) s of that row, s being an equal share of it with the zeros at its end. So a
    matrix may reach over several parts. Source: deepspeed 0.19.8, runtime/zero/stage_1_and_2.py and
    runtime/bf16_optimizer.py, where they set `param_group["params"]`. Where a matrix begins is read from the model's
    own weights, which are views of the row.
    """

    def __init__(self, matrices: list[torch.Tensor], part: torch.Tensor) -> None:
        """Find the matrices that reach into a part.

        Args:
            matrices: the weights of the model in this group.
            part: (s,), this rank's part, with the same values.

        Raises:
            RunFailedError: the part does not hold those values.
        """
        self._size, self._rank, self._matrices = part.numel(), own_rank(), matrices
        self._starts = [int(matrix.storage_offset()) for matrix in matrices]
        ranks = range(num_ranks())
        self._own = [index for index, *_ in self._held(self._rank, self._rank)]
        self._sent = [self._held(self._rank, rank) if rank != self._rank else [] for rank in ranks]
        self._got = [self._held(rank, self._rank) if rank != self._rank else [] for rank in ranks]
        for index in self._own:
            here, there = self.places(index)
            known = matrices[index].detach().flatten()[there]
            if not torch.equal(part[here].to(known.dtype), known):
                raise RunFailedError(
                    "optimizer: DeepSpeed lays the weights out otherwise than Muon expects, whose matrices would be "
                    "mixed up. Use `--accelerate ddp`, or deepspeed 0.19.8."
                )

    def _span(self, index: int, rank: int) -> tuple[int, int]:
        """Return which elements of the row are both of a matrix and of a rank's part; none where first >= end."""
        start = self._starts[index]
        end = start + self._matrices[index].numel()
        return max(start, rank * self._size), min(end, (rank + 1) * self._size)

    def _held(self, owner: int, reader: int) -> list[tuple[int, int, int]]:
        """Return what a rank holds of the matrices that reach into a reader's part: (index, first, end) in the row."""
        indices = [
            index
            for index in range(len(self._matrices))
            if all(first < end for first, end in (self._span(index, rank) for rank in (owner, reader)))
        ]
        return [(index, *self._span(index, owner)) for index in indices]

    def rows(self) -> dict[int, int]:
        """Return the rows of each matrix that reaches into this part, by its index."""
        return {index: len(self._matrices[index]) for index in self._own}

    def places(self, index: int) -> tuple[slice, slice]:
        """Return where a matrix that reaches into the part lies in it, and which of the matrix's elements these are."""
        (first, end), start, offset = self._span(index, self._rank), self._starts[index], self._rank * self._size
        return slice(first - offset, end - offset), slice(first - start, end - start)

    def whole_matrices(self, values: torch.Tensor) -> dict[int, torch.Tensor]:
        """Return the matrices that reach into this part, by index, put together from the ranks' values.

        All ranks have to call it.

        Args:
            values: (s,), of this rank's part.
        """
        remote: dict[int, list[tuple[int, torch.Tensor]]] = defaultdict(list)
        if len(self._sent) > 1:
            for index, first, piece in self._exchanged(values):
                remote[index].append((first - self._starts[index], piece))
        whole = {}
        for index in self._own:
            matrix, (here, there) = self._matrices[index], self.places(index)
            flat = values[here]
            if index in remote:
                flat = values.new_empty(matrix.numel())
                flat[there] = values[here]
                for first, piece in remote[index]:
                    flat[first : first + len(piece)] = piece
            whole[index] = flat.view(matrix.shape)
        return whole

    def _exchanged(self, values: torch.Tensor) -> Iterator[tuple[int, int, torch.Tensor]]:
        """Yield what the other ranks hold of this one's matrices: index, first place in the row, and the values."""
        offset = self._rank * self._size
        pieces = [values[first - offset : end - offset] for held in self._sent for _, first, end in held]
        sizes = [[sum(end - first for _, first, end in held) for held in table] for table in (self._sent, self._got)]
        received = values.new_empty(sum(sizes[1]))
        distributed.all_to_all_single(received, torch.cat([values[:0], *pieces]), sizes[1], sizes[0])
        for index, first, end in (span for held in self._got for span in held):
            yield index, first, received[: end - first]
            received = received[end - first :]


def batches_of_one_shape(matrices: dict[int, torch.Tensor], ranks: int = 1) -> list[list[int]]:
    """Return the keys of matrices that are orthogonalised at once: of one shape, `ORTHOGONALISED_ELEMENTS` at most.

    Args:
        matrices: by key.
        ranks: that share a batch, at least one matrix each.
    """
    shapes: dict[torch.Size, list[int]] = defaultdict(list)
    for key, matrix in matrices.items():
        shapes[matrix.shape].append(key)
    batches = []
    for shape, keys in shapes.items():
        most = ranks * max(1, ORTHOGONALISED_ELEMENTS // (ranks * shape.numel()))
        batches += [keys[first : first + most] for first in range(0, len(keys), most)]
    return batches


def _precision_on(device: torch.device) -> torch.dtype:
    """Return the precision of the orthogonalisation: bf16, or float32 where bf16 would be emulated."""
    return torch.bfloat16 if computes_bf16(device) else torch.float32


def _gathered(own: torch.Tensor, ranks: int) -> torch.Tensor:
    """Return the matrices of all ranks, one rank's after the other's; all have as many."""
    if ranks == 1:
        return own
    every = own.new_empty((ranks * len(own), *own.shape[1:]))
    # torch 2.13 gave it another name, and warns of the old one.
    gather = getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor
    gather(every, own)
    return every


def check_optimizer(config: Any) -> None:
    """Check the keys of the optimizer against each other.

    Raises:
        InputError: Muon beside another optim of the Trainer or its options; an embedding rate that is not positive.
    """
    usual = type(config).__dataclass_fields__["optim"].default
    ensure(
        config.optimizer == "adamw" or config.optim in (None, usual, getattr(usual, "value", usual)),
        f"optim={config.optim}, optimizer={config.optimizer}: give one of the two. optim is the Trainer's own key.",
    )
    for name in ("optim_args", "optim_target_modules"):
        value = getattr(config, name, None)
        ensure(
            config.optimizer == "adamw" or not value,
            f"{name}={value}, optimizer={config.optimizer}: {name} is of the Trainer's optim. Leave it out.",
        )
    rate = config.embedding_learning_rate
    ensure(
        rate is None or config.optimizer != "adamw",
        f"embedding_learning_rate={rate}: belongs to optimizer: muon or normuon. Leave it out.",
    )
    ensure(rate is None or rate > 0, f"embedding_learning_rate={rate}: must be positive.")


# Those of transformers' names of optimizers that keep two moments of each parameter in float32.
_ADAMW_OPTIMS = ("adamw_torch", "adamw_torch_fused", "adamw_apex_fused")


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


def describe_optimizer(config: Any, shape: Any, zero_stage: int) -> str:
    """Return which optimizer trains what, and the size of its state, for the banner.

    Args:
        config: a `PretrainConfig`.
        shape: the model's configuration.
        zero_stage: DeepSpeed's stage, 0 without.
    """
    text = optim = str(getattr(config.optim, "value", config.optim))
    if config.optimizer != "adamw":
        rate = config.embedding_learning_rate or config.learning_rate
        text = (
            f"{config.optimizer} for the layers' matrices; AdamW for embeddings and head (peak {rate:g}) and for norms"
        )
    elif optim not in _ADAMW_OPTIMS:
        return text  # how much another one keeps is not known here
    shares = config.world_size if zero_stage else 1
    size = format_bytes(optimizer_bytes(shape, config.optimizer, shares=shares))
    each = "" if config.world_size == 1 else f" on each of {config.world_size} ranks"
    return f"{text}; state of {size}{each}"
