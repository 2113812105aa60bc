"""What the chosen run needs beside time and money: a batch, memory on each GPU, room on the disk."""

from dataclasses import dataclass

from ..presets import Preset, count_parameters
from ..training.batch import optimal_batch_tokens, row_divisors
from ..training.memory import USED_SHARE, Computation, checkpoint_bytes, choose_rows, final_model_bytes, memory_need
from .calibration import CPU
from .machine import Machine

STAGES: tuple[int | None, ...] = (None, 1, 2, 3)
_MOST_ROWS = 64
_TOKEN_BYTES = 2  # `ttl pack` keeps ids of up to 65,536 entries in two bytes


@dataclass(frozen=True)
class StageMemory:
    """Memory of one GPU under one way of sharing the optimizer's state.

    Attributes:
        zero_stage: DeepSpeed's stage; 0 shares nothing (`--accelerate single` or `ddp`).
        state_bytes: held whatever the micro-batch is.
        bytes_by_rows: peak by the rows that a GPU computes at once.
        rows: the micro-batch that would be chosen; None: not even one row fits.
    """

    zero_stage: int
    state_bytes: int
    bytes_by_rows: dict[int, int]
    rows: int | None


@dataclass(frozen=True)
class Needs:
    """Batch, memory and disk of a run.

    Attributes:
        optimal_batch_tokens: tokens of a step that the batch law advises for the run's length.
        usable_bytes: of each GPU's memory, that a micro-batch may fill; None: the memory is not known.
        stages: memory by ZeRO stage.
        checkpoints_kept: by the recipe; one more is there while it is written.
        checkpoints_bytes: of these and the final model.
        packed_bytes: of the rows of tokens.
    """

    optimal_batch_tokens: float
    usable_bytes: float | None
    stages: list[StageMemory]
    checkpoints_kept: int
    checkpoints_bytes: int
    packed_bytes: int


def run_needs(
    shape: Preset,
    context: int,
    tokens: int,
    tokens_per_step: int,
    checkpoints_kept: int,
    unique_tokens: int | None,
    machine: Machine,
) -> Needs:
    """Return what a run of a preset needs on a machine.

    Args:
        shape: of the model.
        context: tokens a row.
        tokens: of the whole run.
        tokens_per_step: global batch.
        checkpoints_kept: how many stay on the disk.
        unique_tokens: different tokens; None: as many as are trained on.
        machine: what it runs on.
    """
    rows_per_gpu = tokens_per_step // context // machine.num_gpus
    parameters = count_parameters(shape)
    checkpoints = (checkpoints_kept + 1) * checkpoint_bytes(parameters, machine.precision)  # one is being written
    return Needs(
        optimal_batch_tokens=optimal_batch_tokens(tokens),
        usable_bytes=None if machine.memory_bytes is None else _used_share(machine) * machine.memory_bytes,
        stages=[_stage_memory(shape, context, rows_per_gpu, stage, machine) for stage in STAGES],
        checkpoints_kept=checkpoints_kept,
        checkpoints_bytes=checkpoints + final_model_bytes(parameters),
        packed_bytes=_TOKEN_BYTES * min(tokens, unique_tokens or tokens),
    )


def _used_share(machine: Machine) -> float:
    return USED_SHARE["cpu" if machine.gpu == CPU else "gpu"]


def _stage_memory(shape: Preset, context: int, rows_per_gpu: int, stage: int | None, machine: Machine) -> StageMemory:
    on_gpu = machine.gpu != CPU
    how = Computation(
        precision=machine.precision,
        zero_stage=stage,
        world_size=machine.num_gpus,
        # `training.speed.plan_speed`, for a run that is long enough to compile
        loss="whole" if stage == 3 else "compiled" if on_gpu else "chunked",
        compiled=on_gpu and stage != 3,
        on_gpu=on_gpu,
    )
    need = memory_need(shape, context, how)
    divisors = row_divisors(rows_per_gpu)
    chosen = None
    if machine.memory_bytes is not None and need.total_bytes(1) <= _used_share(machine) * machine.memory_bytes:
        chosen = choose_rows(divisors, need, int(machine.memory_bytes), context, "cuda" if on_gpu else "cpu")
    powers = [2**power for power in range(_MOST_ROWS.bit_length()) if 2**power <= rows_per_gpu]
    by_rows = {rows: need.total_bytes(rows) for rows in powers}
    return StageMemory(stage or 0, need.state_bytes, by_rows, chosen)
