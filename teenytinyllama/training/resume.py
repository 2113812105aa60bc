"""From which checkpoint a run goes on: the newest that proves itself, with a word on each that does not."""

import json
from pathlib import Path
from typing import Any

from ..checkpoints import (
    BEGUN_NAME,
    MARKER_NAME,
    checkpoint_faults,
    complete_checkpoints,
    is_ours,
    list_checkpoints,
    read_marker,
)
from ..checks import InputError, counted, ensure, is_main_process
from ..collectives import least_over_ranks
from .micro_batch import zero_stage_of
from .plan import RunPlan

# What a checkpoint's config.json must have in common with the model that is to go on.
_SHAPE = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "tie_word_embeddings",
)
_MOST_FAULTS = 3  # told of one checkpoint
_NONE, _REFUSED = -1, -2  # told to the other ranks in place of a step


def choose_checkpoint(config: Any, plan: RunPlan, zero_stage: int) -> Path | None:
    """Return the newest checkpoint that is whole and of this model, or None; the same on every rank.

    Rank 0 alone reads and hashes, and says which it skipped and why; all ranks have to call this.

    Args:
        config: a `RunSettings`; checkpoints after its last step do not count.
        plan: the checked plan.
        zero_stage: DeepSpeed's stage now, 0 without.

    Raises:
        InputError: there are complete checkpoints and none of them holds; or the newest that does was written under
            ZeRO by another number of ranks or another stage, which DeepSpeed cannot load; or not every rank sees it.
    """
    refusal, step = None, 0
    if is_main_process():
        try:
            found = _newest_whole(plan, config.max_steps)
            step = _NONE if found is None else found[0]
            if found is not None:
                _check_ranks(plan.folder, found[1], config.world_size, zero_stage)
        except InputError as error:
            refusal, step = error, _REFUSED
    step = least_over_ranks(step if is_main_process() else config.max_steps, config.device)
    if refusal is not None:
        raise refusal
    ensure(step != _REFUSED, f"output_dir={plan.folder}: rank 0 refused to resume from it.")
    if step == _NONE:
        return None
    path = plan.folder / f"checkpoint-{step}"
    seen = least_over_ranks(int((path / MARKER_NAME).is_file()), config.device)
    ensure(
        seen,
        f"output_dir={plan.folder}: not every machine sees {path.name} there, and each rank has to read it. Put the "
        "folder on a disk that all machines share.",
    )
    return path


def _newest_whole(plan: RunPlan, max_step: int) -> tuple[int, Path] | None:
    """Return step and folder of the newest checkpoint that holds; print which newer ones were skipped.

    Raises:
        InputError: complete ones are there, and none holds.
    """
    _refuse_strangers(plan.folder, max_step)
    reasons = {}
    for step, path in reversed(list_checkpoints(plan.folder)):
        if step > max_step:
            reasons[path] = f"is of a step after the {max_step} asked for"
            continue
        faults = checkpoint_faults(path) or _other_shape(path, plan)
        if not faults:
            _say_what_holds(path)
            return step, path
        reasons[path] = _tell(faults)
        print(f"skipped    {path.name}: {reasons[path]}", flush=True)
    complete = [path for _, path in complete_checkpoints(plan.folder)]
    ensure(
        not complete,
        f"output_dir={plan.folder}: the run was saved before, and it cannot go on from any of its checkpoints: "
        f"{', '.join(f'{path.name} ({reasons[path]})' for path in complete)}. Restore one from a copy, delete them to "
        "start from the beginning, or choose another folder.",
    )
    return None


def _refuse_strangers(folder: Path, max_step: int) -> None:
    """Refuse a folder in the way of a save: nothing that was not written here is ever replaced or deleted.

    Raises:
        InputError: there is one after the newest complete checkpoint.
    """
    newest = max((step for step, _ in complete_checkpoints(folder)), default=0)
    later = [path for step, path in list_checkpoints(folder) if newest < step <= max_step and not is_ours(path)]
    strangers = [path.name for path in later if path.is_symlink() or not path.is_dir() or any(path.iterdir())]
    ensure(
        not strangers,
        f"output_dir={folder}: {', '.join(strangers)} may lie where this run will save, and was not written by it (it "
        f"has no {MARKER_NAME} and no {BEGUN_NAME}). Move it away. If an earlier version of this package was killed "
        "while it saved there, delete it.",
    )


def _say_what_holds(path: Path) -> None:
    files = read_marker(path).files
    if files is None:
        print(f"checked    {path.name}: saved by an earlier version, without hashes; taken as it is", flush=True)
        return
    size_gb = sum(record.bytes for record in files.values()) / 1e9
    print(
        f"checked    {path.name}: {counted(len(files), 'file')}, {size_gb:.2f} GB, all as they were saved", flush=True
    )


def _tell(faults: list[str]) -> str:
    more = len(faults) - _MOST_FAULTS
    return "; ".join(faults[:_MOST_FAULTS]) + (f"; and {more} more" if more > 0 else "")


def _other_shape(path: Path, plan: RunPlan) -> list[str]:
    """Return where the config of a checkpoint differs from the run's; an adapter alone has no config to compare."""
    config = path / "config.json"
    if not config.is_file():
        return []
    try:
        there: dict[str, Any] = dict(json.loads(config.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        return [f"config.json cannot be read ({error})"]
    now = plan.model_config.to_dict()
    if max(plan.tokenizer.get_vocab().values()) >= now["vocab_size"]:
        there.pop("vocab_size", None)  # tuning gives tokens that are new their embeddings
    return [
        f"is of another model: {name} is {there[name]} there and {now[name]} now"
        for name in _SHAPE
        if name in there and name in now and there[name] != now[name]
    ]


def _check_ranks(folder: Path, path: Path, world_size: int, zero_stage: int) -> None:
    marker = read_marker(path)
    ensure(
        (marker.world_size, marker.zero_stage) == (world_size, zero_stage) or marker.zero_stage == zero_stage == 0,
        f"output_dir={folder}: {path.name} was saved by {counted(marker.world_size, 'rank')} under ZeRO stage "
        f"{marker.zero_stage}, and this start has {world_size} under stage {zero_stage} (0 is none). DeepSpeed "
        "cannot load it: start as before, or convert it with `python -m deepspeed.checkpoint.ds_to_universal`.",
    )


def check_plain_weights(config: Any) -> None:
    """Check that a checkpoint will hold the whole weights for anyone to load, under ZeRO-3 too.

    Raises:
        InputError: accelerate's file asks for ZeRO-3 without them.
    """
    if zero_stage_of(config) != 3:
        return
    asked = config.deepspeed_plugin.deepspeed_config["zero_optimization"]
    gathers = asked.get("stage3_gather_16bit_weights_on_model_save")
    ensure(
        gathers is True,
        f"stage3_gather_16bit_weights_on_model_save={gathers}: checkpoints would hold no weights that load without "
        "DeepSpeed. Set it to true in the DeepSpeed file, or zero3_save_16bit_model: true in accelerate's.",
    )
