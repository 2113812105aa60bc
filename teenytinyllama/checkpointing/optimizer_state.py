"""The optimizer's state by the names of parameters: a run goes on with any number of ranks, alone, under DDP or ZeRO.

A checkpoint has a folder `optimizer`: `00001.safetensors`, … hold `NAME|exp_avg` and the like, each tensor whole, and
`state.json` holds what is no tensor. Where the weights beside it are not those that are trained (DeepSpeed trains
16-bit copies of float32 masters; an adapter's file has other names), `NAME|weight` holds these.

Ranks under ZeRO 1 and 2 put their parts together when they save, and take their parts when they load. DeepSpeed's own
files are neither written nor read: they fit one number of ranks, and are pickles.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers.trainer as trainer_module
from safetensors import safe_open
from safetensors.torch import save_file
from torch import distributed

from ..distributed import is_main_process, num_ranks
from ..stage_folder import write_json
from ..training.optimizer import MuonAdamW

STATE_FOLDER = "optimizer"
_STATE_NAME = "state.json"
_MOST_BYTES = 2**30  # of the tensors that rank 0 holds before it writes them
# The states that are as large as their parameter, by the kind of a group; NorMuon has one value a row beside them.
_STATES = {
    "adamw": ("exp_avg", "exp_avg_sq"),
    "muon": ("momentum_buffer",),
    "normuon": ("momentum_buffer",),
}
_ROWS = "row_square"


def keeps_by_name(trainer: Any) -> bool:
    """Return whether this run's optimizer is one that is saved by name; the engine must have been made.

    Others (Adafactor, 8-bit states, ZeRO 3, states on the CPU) are saved by the Trainer, for the same ranks.
    """
    zero = _zero_optimizer(trainer)
    if zero is not None and (_flat_parts(zero) is None or getattr(zero, "cpu_offload", False)):
        return False
    return type(_base_optimizer(trainer)) in (torch.optim.AdamW, MuonAdamW)


def is_by_name(checkpoint: Path) -> bool:
    """Return whether a checkpoint holds the optimizer's state by name."""
    return (checkpoint / STATE_FOLDER / _STATE_NAME).is_file()


@contextmanager
def without_deepspeed_files() -> Iterator[None]:
    """Let the Trainer's training loop leave DeepSpeed's files alone in the block, where a checkpoint has none.

    The loop calls this function of its own module before it loads the optimizer, and offers no method to override.
    """
    original = trainer_module.deepspeed_load_checkpoint

    def load(engine: Any, checkpoint: str, **kwargs: Any) -> None:
        if not is_by_name(Path(checkpoint)):
            original(engine, checkpoint, **kwargs)

    trainer_module.deepspeed_load_checkpoint = load  # type: ignore[assignment]
    try:
        yield
    finally:
        trainer_module.deepspeed_load_checkpoint = original


def save_optimizer(trainer: Any, checkpoint: Path) -> None:
    """Write the state of a run's optimizer and schedule into a checkpoint; all ranks have to call it, rank 0 writes."""
    folder = checkpoint / STATE_FOLDER
    zero, base, names = _zero_optimizer(trainer), _base_optimizer(trainer), _names(trainer)
    if zero is None and not is_main_process():
        return
    writer = _Writer(folder) if is_main_process() else None
    needs_weights = zero is not None or _is_adapter(trainer)
    for name, tensor in _plain_states(base, names, needs_weights) if zero is None else _zero_states(zero, names):
        if writer is not None:
            writer.add(name, tensor)
    if writer is None:
        return
    writer.flush()
    torch.save(trainer.lr_scheduler.state_dict(), checkpoint / trainer_module.SCHEDULER_NAME)
    steps = [float(state["step"]) for state in base.state.values() if "step" in state]
    groups = _groups(zero, base)
    state = {
        "steps_of_adamw": max(steps, default=0.0),
        "learning_rates": {names[params[0]]: group["lr"] for params, group in groups if params},
        "loss_scale": _numbers(zero.loss_scaler) if hasattr(zero, "loss_scaler") else None,
    }
    write_json(folder / _STATE_NAME, state)


def load_optimizer(trainer: Any, checkpoint: Path) -> None:
    """Give a run's model, optimizer and schedule the state of a checkpoint, whatever ranks wrote it.

    Raises:
        KeyError: the checkpoint lacks the state of a parameter; its marker would have said so.
    """
    folder = checkpoint / STATE_FOLDER
    zero, base, names = _zero_optimizer(trainer), _base_optimizer(trainer), _names(trainer)
    state = json.loads((folder / _STATE_NAME).read_text(encoding="utf-8"))
    with _opened([*folder.glob("*.safetensors"), *checkpoint.glob("model*.safetensors")]) as read:
        if zero is None:
            _load_plain(base, names, read, state["steps_of_adamw"])
        else:
            _load_zero(zero, names, read, state["steps_of_adamw"])
    for params, group in _groups(zero, base):
        if params:  # of the next step: the schedule sets it only after a step
            group["lr"] = state["learning_rates"][names[params[0]]]
    if hasattr(zero, "loss_scaler") and state["loss_scale"]:
        vars(zero.loss_scaler).update(state["loss_scale"])
    schedule = torch.load(checkpoint / trainer_module.SCHEDULER_NAME, weights_only=True)
    trainer.lr_scheduler.load_state_dict(schedule)


def _base_optimizer(trainer: Any) -> Any:
    """Return the torch optimizer below accelerate's and DeepSpeed's."""
    found = trainer.optimizer
    while not isinstance(found, torch.optim.Optimizer) or hasattr(found, "optimizer"):
        found = found.optimizer
    return found


def _zero_optimizer(trainer: Any) -> Any:
    """Return DeepSpeed's optimizer, or None without DeepSpeed."""
    engine = trainer.model_wrapped
    return engine.optimizer if hasattr(engine, "zero_optimization_stage") else None


def _flat_parts(zero: Any) -> list[torch.Tensor] | None:
    """Return this rank's part of each group under ZeRO 1 and 2; None for another optimizer of DeepSpeed's."""
    for name in ("fp32_groups_flat_partition", "single_partition_of_fp32_groups"):  # BF16_Optimizer, and the other one
        if hasattr(zero, name) and (hasattr(zero, "bf16_groups") or hasattr(zero, "bit16_groups")):
            return list(getattr(zero, name))
    return None


def _groups(zero: Any, base: Any) -> list[tuple[list[Any], dict[str, Any]]]:
    """Return for each group of the optimizer the model's parameters in it."""
    if zero is None:
        return [(group["params"], group) for group in base.param_groups]
    params = zero.bf16_groups if hasattr(zero, "bf16_groups") else zero.bit16_groups
    return list(zip(params, base.param_groups, strict=True))


def _names(trainer: Any) -> dict[torch.nn.Parameter, str]:
    return {parameter: name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}


def _is_adapter(trainer: Any) -> bool:
    return not all(parameter.requires_grad for parameter in trainer.model.parameters())


def _numbers(thing: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(thing).items() if isinstance(value, int | float)}


def _plain_states(
    base: Any, names: dict[torch.nn.Parameter, str], with_weights: bool
) -> Iterator[tuple[str, torch.Tensor]]:
    for group in base.param_groups:
        for parameter in group["params"]:
            if with_weights:
                yield f"{names[parameter]}|weight", parameter.detach()
            for key, value in base.state.get(parameter, {}).items():
                if key != "step":
                    yield f"{names[parameter]}|{key}", value


def _zero_states(zero: Any, names: dict[torch.nn.Parameter, str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the whole tensors, put together from all ranks; they are whole on rank 0 alone."""
    base, parts = zero.optimizer, _flat_parts(zero)
    assert parts is not None
    for (params, group), flat in zip(_groups(zero, base), parts, strict=True):
        state, kind = base.state[flat], group.get("kind", "adamw")
        for parameter in params:
            yield f"{names[parameter]}|weight", _whole(parameter, flat)
            for key in _STATES[kind]:
                yield f"{names[parameter]}|{key}", _whole(parameter, state[key])
        if kind == "normuon":
            own = base.row_squares(group, flat)
            for index, parameter in enumerate(params):
                rows = own.get(index, flat.new_zeros(len(parameter))).clone()
                if num_ranks() > 1:  # ranks that share a matrix have the same values, others zeros
                    distributed.reduce(rows, dst=0, op=distributed.ReduceOp.MAX)
                yield f"{names[parameter]}|{_ROWS}", rows


def _whole(parameter: Any, flat: torch.Tensor) -> torch.Tensor:
    """Return what the ranks' parts hold of a parameter, whole on rank 0.

    Where a parameter lies in a part is DeepSpeed's own record. Source: deepspeed 0.19.8, utils/tensor_fragment.py.
    """
    whole, held = flat.new_zeros(parameter.numel()), parameter._hp_mapping
    if held is not None:
        here, there = held.hp_fragment_address, held.lp_fragment_address
        whole[there.start : there.start + there.numel] = flat[here.start : here.start + here.numel]
    if num_ranks() > 1:
        distributed.reduce(whole, dst=0)
    return whole.view(parameter.shape)


class _Writer:
    """Writes tensors into numbered files, so that rank 0 holds few of them at a time."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._bytes, self._files = folder, 0, 0
        self._tensors: dict[str, torch.Tensor] = {}

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Take a tensor; a file is written when the tensors together are large enough."""
        self._tensors[name] = tensor.detach().to("cpu", copy=True).contiguous()
        self._bytes += tensor.numel() * tensor.element_size()
        if self._bytes >= _MOST_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write the tensors that are held into the next file, if there are any."""
        if self._tensors:
            self._files += 1
            save_file(self._tensors, self._folder / f"{self._files:05d}.safetensors")
        self._tensors, self._bytes = {}, 0


Reader = Callable[[str, str], torch.Tensor | None]


@contextmanager
def _opened(files: list[Path]) -> Iterator[Reader]:
    """Yield a function that returns a tensor by the name of its parameter and its own, or None if no file has it."""
    opened = {file: safe_open(file, framework="pt") for file in files}
    places = {key: handle for handle in opened.values() for key in handle.keys()}  # noqa: SIM118  (no mapping)

    def read(name: str, key: str) -> torch.Tensor | None:
        for wanted in (f"{name}|{key}", name) if key == "weight" else (f"{name}|{key}",):
            if wanted in places:
                tensor: torch.Tensor = places[wanted].get_tensor(wanted)
                return tensor
        return None

    yield read


def _load_plain(base: Any, names: dict[torch.nn.Parameter, str], read: Reader, steps: float) -> None:
    values: dict[int, dict[str, torch.Tensor]] = {}
    number = 0
    with torch.no_grad():
        for group in base.param_groups:
            kind = group.get("kind", "adamw")
            for parameter in group["params"]:
                weight = read(names[parameter], "weight")
                if weight is not None:
                    parameter.copy_(weight)
                found = {key: read(names[parameter], key) for key in (*_STATES[kind], _ROWS)}
                known = {key: value for key, value in found.items() if value is not None}
                if known:
                    values[number] = known | ({"step": torch.tensor(steps)} if kind == "adamw" else {})
                number += 1
    base.load_state_dict({"state": values, "param_groups": base.state_dict()["param_groups"]})


def _load_zero(zero: Any, names: dict[torch.nn.Parameter, str], read: Reader, steps: float) -> None:
    base, parts = zero.optimizer, _flat_parts(zero)
    assert parts is not None
    for (params, group), flat in zip(_groups(zero, base), parts, strict=True):
        kind = group.get("kind", "adamw")
        state = {key: torch.zeros_like(flat) for key in _STATES[kind]}
        if kind == "adamw":
            state["step"] = torch.tensor(steps, device=flat.device)
        for parameter in params:
            held, name = parameter._hp_mapping, names[parameter]
            targets = {"weight": flat.data, **{key: state[key] for key in _STATES[kind]}}
            for key, target in targets.items():
                value = read(name, key)
                if value is None:
                    raise KeyError(f"{name}|{key}")
                if key == "weight":
                    parameter.data.copy_(value)
                if held is not None:
                    here, there = held.hp_fragment_address, held.lp_fragment_address
                    piece = value.flatten()[there.start : there.start + there.numel]
                    target[here.start : here.start + here.numel] = piece.to(target)
        base.state[flat] = state
        if kind == "normuon":
            for index, rows in base.row_squares(group, flat).items():
                rows.copy_(read(names[params[index]], _ROWS))
