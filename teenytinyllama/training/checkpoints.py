"""Checkpoints that are known to be whole, and the rules of a run's folder.

A checkpoint counts only when `complete.json` lies in it, which is written after every rank has saved. The Trainer's
own rotation runs *before* that moment and could delete the last good checkpoint, so rotation happens here instead.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..checks import InputError, ensure
from ..manifest import MANIFEST_NAME, write_json

MARKER_NAME = "complete.json"
ENVIRONMENT_NAME = "environment.json"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)$")


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Return (step, folder) of all checkpoints, complete or not, by step."""
    found = [(int(match[1]), path) for path in folder.glob("checkpoint-*") if (match := _CHECKPOINT.match(path.name))]
    return sorted(found)


def complete_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Return (step, folder) of the checkpoints with a completion marker, by step."""
    return [(step, path) for step, path in list_checkpoints(folder) if (path / MARKER_NAME).is_file()]


def latest_complete_checkpoint(folder: Path, max_step: int, world_size: int, zero_stage: int) -> Path | None:
    """Return the newest complete checkpoint up to `max_step`, or None.

    Raises:
        InputError: it was written under ZeRO by another number of ranks or another stage, which DeepSpeed cannot load.
    """
    found = [path for step, path in complete_checkpoints(folder) if step <= max_step]
    if not found:
        return None
    marker = json.loads((found[-1] / MARKER_NAME).read_text(encoding="utf-8"))
    same = (marker["world_size"], marker["zero_stage"]) == (world_size, zero_stage)
    ensure(
        same or (marker["zero_stage"] == 0 and zero_stage == 0),
        f"output_dir={folder}: {found[-1].name} was saved by {marker['world_size']} rank(s) under ZeRO stage "
        f"{marker['zero_stage']}, and this start has {world_size} under stage {zero_stage} (0 is none). DeepSpeed "
        "cannot load it: start as before, or convert it with `python -m deepspeed.checkpoint.ds_to_universal`.",
    )
    return found[-1]


class CheckpointCallback(TrainerCallback):
    """Mark a checkpoint complete when all ranks have written theirs, then rotate. Must be the last callback."""

    def __init__(self, keep: int | None, zero_stage: int) -> None:
        """Keep the newest `keep` complete checkpoints (None: all)."""
        self.keep, self.zero_stage = keep, zero_stage

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Wait for all ranks, write the marker, delete what is too old or was left half-written."""
        import torch.distributed as dist

        if dist.is_available() and dist.is_initialized():
            dist.barrier()
        if not state.is_world_process_zero:
            return
        folder = Path(str(args.output_dir))
        newest = folder / f"checkpoint-{state.global_step}"
        marker = {"step": state.global_step, "world_size": args.world_size, "zero_stage": self.zero_stage}
        write_json(newest / MARKER_NAME, marker)
        complete = [path for _, path in complete_checkpoints(folder)]
        old = complete[: -self.keep] if self.keep else []
        half_written = [
            path for step, path in list_checkpoints(folder) if step < state.global_step and path not in complete
        ]
        for path in [*old, *half_written]:
            if path != newest:
                (path / MARKER_NAME).unlink(missing_ok=True)  # a killed deletion must not look complete
                shutil.rmtree(path)


def run_identity(config: Any, names: list[str], hashes: dict[str, str]) -> dict[str, Any]:
    """Return what makes two starts the same run: everything that decides the weights, but not the length.

    Args:
        config: has these names.
        names: keys that decide the weights.
        hashes: of the data and the tokenizer.
    """
    values = {name: getattr(config, name) for name in names}
    return {**{name: str(getattr(value, "value", value)) for name, value in values.items()}, **hashes}


def lock_run_folder(folder: Path) -> FileLock:
    """Make the folder and hold it for this process, so that two starts of one command cannot mix; release it after.

    Raises:
        InputError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(f"output_dir={folder}: another process is training there. Wait for it or stop it.") from error
    return lock


def check_run_folder(folder: Path, identity: dict[str, Any]) -> str:
    """Return the state of a run's folder: `new`, `resume` or `complete`.

    Raises:
        InputError: the folder holds another run, or files that are no run's.
    """
    ensure(not folder.exists() or folder.is_dir(), f"output_dir={folder}: is a file. Choose a folder.")
    if not folder.exists() or not any(folder.iterdir()):
        return "new"
    environment = folder / ENVIRONMENT_NAME
    if not environment.is_file():
        others = sorted(
            path.name
            for path in folder.iterdir()
            if path.name not in (".lock", "packed", "conversations", "preferences", "publish.log", ".publish")
        )
        ensure(
            not others,
            f"output_dir={folder}: is not empty and holds no run of ours ({', '.join(others[:3])}). "
            "Choose another folder.",
        )
        return "new"
    try:
        before = json.loads(environment.read_text(encoding="utf-8"))["identity"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"output_dir={folder}: {ENVIRONMENT_NAME} is damaged. Choose another folder.") from error
    different = [f"{name} (there {before.get(name)}, now {identity[name]})" for name in identity
                 if before.get(name) != identity[name]]  # fmt: skip
    ensure(
        not different,
        f"output_dir={folder}: holds another run; different: {'; '.join(different)}. Choose another folder.",
    )
    return "complete" if (folder / MANIFEST_NAME).is_file() else "resume"
