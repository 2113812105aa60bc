"""Saving checkpoints that are known to be whole, and the rules of a run's folder.

The Trainer's own rotation runs *before* every rank has saved and could delete the last good checkpoint, so marking,
rotation and the room on the disk are seen to here.

Where a run's time goes: training, waiting for data, evaluating, saving, and our callbacks, samples included.
"""

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..arguments import load_yaml
from ..checkpoints import (
    Marker,
    checkpoint_path,
    complete_checkpoints,
    delete_checkpoint,
    hash_files,
    list_checkpoints,
    sync_files,
    write_marker,
)
from ..checks import RunFailedError, beside_the_model, free_disk_bytes
from ..distributed import least_over_ranks, wait_for_ranks
from ..energy.emissions import emission_files
from ..energy.ledger import ledger_path, read_starts
from ..stage_folder import CONFIG_NAME, ENVIRONMENT_NAME, MARKER_NAME, PROGRESS_FOLDER, SPEED_TEST_NAME, StageFolder

# `on_save` belongs to saving and `on_train_begin` and `on_train_end` to starting and ending, whoever does the work.
_EVENTS = ("on_step_begin", "on_step_end", "on_substep_end", "on_log", "on_evaluate", "on_prediction_step",
           "on_pre_optimizer_step", "on_optimizer_step", "on_epoch_begin", "on_epoch_end")  # fmt: skip


class Clock:
    """Seconds by part of the run, in this process since it started; time inside another part counts there alone.

    Attributes:
        seconds: by part.
        times: how often each part was entered.
    """

    def __init__(self) -> None:
        """Start with nothing."""
        self.seconds: dict[str, float] = defaultdict(float)
        self.times: dict[str, int] = defaultdict(int)
        self._inner = [0.0]  # seconds that parts inside the present one have taken

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time of the block as `name`, less what parts inside it count."""
        self._inner.append(0.0)
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[name] += spent - self._inner.pop()
            self.times[name] += 1
            self._inner[-1] += spent

    def watch(self, callback: TrainerCallback, name: str) -> TrainerCallback:
        """Count the time of a callback's own event methods as `name`; return the callback."""
        for event in _EVENTS:
            if getattr(type(callback), event) is not getattr(TrainerCallback, event):
                setattr(callback, event, self._timed(getattr(callback, event), name))
        return callback

    def _timed(self, method: Callable[..., Any], name: str) -> Callable[..., Any]:
        @functools.wraps(method)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return method(*args, **kwargs)

        return timed


# What `ttl` writes into a run's folder before its ranks start.
_PREPARED = frozenset({"packed", "conversations", "preferences", SPEED_TEST_NAME, "speed-test", "speed-test.log",
                       "publish.log", PROGRESS_FOLDER})  # fmt: skip
_FREE_SHARE = 1.05  # of the room that a save needs, for what else is written meanwhile


class CheckpointCallback(TrainerCallback):
    """Mark a checkpoint complete when all ranks have written theirs, then rotate. Must be the last callback.

    A save that does not fit on the disk is withdrawn before it begins, on all ranks alike, and training goes on.
    """

    def __init__(
        self,
        folder: Path,
        keep: int | None,
        zero_stage: int,
        needed_bytes: int,
        final_bytes: int,
        figures: Callable[[int], dict[str, Any]],
        clock: Clock,
    ) -> None:
        """Save into a run's folder.

        Args:
            folder: the run's.
            keep: complete checkpoints kept (None: all).
            zero_stage: DeepSpeed's stage, 0 without.
            needed_bytes: of a checkpoint, by arithmetic; once one is written, its own size counts.
            final_bytes: of what is written at the end beside the last checkpoint.
            figures: returns a step's figures for the marker, by the names of `Marker`.
            clock: counts what marking costs, and the hashes by themselves.
        """
        self.folder, self.keep, self.zero_stage = folder, keep, zero_stage
        self.needed_bytes, self.final_bytes = needed_bytes, final_bytes
        self.figures, self.clock = figures, clock
        self._withdrawn = 0
        self._told_of_disks = False
        self._saved_bytes = 0  # of the last checkpoint; known on rank 0 alone

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Withdraw a save that has no room.

        Raises:
            RunFailedError: it is the last one, by length or by a signal; raised on every rank.
        """
        # An evaluation counts too: a signal in it lets the Trainer save without another question.
        if not (control.should_save or control.should_evaluate):
            return
        obstacle = self._obstacle(args, state, last=state.global_step >= state.max_steps)
        if obstacle is None or not control.should_save:
            return
        saved = complete_checkpoints(self.folder)
        if control.should_training_stop:
            go_on = f"goes on from {saved[-1][1].name}" if saved else "starts again"
            raise RunFailedError(
                f"output_dir={self.folder}: the last save, of step {state.global_step}, {obstacle}, and was not begun. "
                f"The same command {go_on}."
            )
        control.should_save = False
        self._withdrawn += 1
        if state.is_world_process_zero and self._withdrawn & (self._withdrawn - 1) == 0:  # the first, 2nd, 4th, 8th …
            newest = f"the newest complete one is {saved[-1][1].name}" if saved else "there is none yet"
            tqdm.write(
                f"not saved  step {state.global_step}: the save {obstacle}. Training goes on without it; {newest} "
                f"(saves left out so far: {self._withdrawn})"
            )

    on_epoch_end = on_step_end

    def _obstacle(self, args: TrainingArguments, state: TrainerState, last: bool) -> str | None:
        """Return what is in the way of a save of this step, the same on all ranks; make room for it where that helps.

        A checkpoint of this step from an earlier start, which was no good or was not trusted, is deleted: its marker
        must not stand in a folder that is being written.
        """
        there = checkpoint_path(self.folder, state.global_step)
        is_empty = not there.is_dir() or not any(there.iterdir())
        cleared = not state.is_world_process_zero or is_empty or delete_checkpoint(there)
        if not least_over_ranks(int(cleared), args.device):
            return f"would replace {there.name}, which another process reads or which is not this run's: move it away"
        saved_bytes = -least_over_ranks(-self._saved_bytes, args.device)
        needed_bytes = int(_FREE_SHARE * ((saved_bytes or self.needed_bytes) + last * self.final_bytes))
        free_bytes = least_over_ranks(free_disk_bytes(self.folder), args.device)
        if free_bytes < needed_bytes:
            if state.is_world_process_zero:
                self._rotate(state.global_step, max(1, self.keep - 1) if self.keep else None)
            free_bytes = least_over_ranks(free_disk_bytes(self.folder), args.device)
        if free_bytes >= needed_bytes:
            return None
        return (
            f"needs about {needed_bytes / 1e9:.2f} GB on the disk of {self.folder} and {free_bytes / 1e9:.2f} GB are "
            "free: free some space there or lower save_total_limit"
        )

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Wait for all ranks and the disk, write the marker, delete what is too old or was left half-written."""
        newest = checkpoint_path(self.folder, state.global_step)
        with self.clock.part("marking"):
            wait_for_ranks()
            if args.local_process_index == 0:
                sync_files(newest)
            # Waits for the other machines' disks as well.
            shared = least_over_ranks(int((newest / "trainer_state.json").is_file()), args.device)
            if state.is_world_process_zero:
                self._mark(newest, args, state)
                self._tell_of_disks(shared)
                with beside_the_model("deleting old checkpoints"):
                    self._rotate(state.global_step, self.keep)
        self._withdrawn = 0

    def _mark(self, newest: Path, args: TrainingArguments, state: TrainerState) -> None:
        with self.clock.part("hashing"):
            files = hash_files(newest)
        self._saved_bytes = sum(record.bytes for record in files.values())
        figures = self.figures(state.global_step)
        write_marker(newest, Marker(state.global_step, args.world_size, self.zero_stage, files=files, **figures))

    def _tell_of_disks(self, shared: int) -> None:
        if not shared and not self._told_of_disks:
            self._told_of_disks = True
            tqdm.write(
                f"warning    not every machine sees output_dir={self.folder} of the first one: {MARKER_NAME} vouches "
                "for the first machine's files alone, and the run cannot be resumed on several machines. Use a disk "
                "that all of them share."
            )

    def _rotate(self, step: int, keep: int | None) -> None:
        """Delete complete checkpoints beyond the newest `keep`, and half-written ones; those held go another time.

        Checkpoints of later steps, which an earlier start wrote, are neither counted nor touched.
        """
        complete = [path for at, path in complete_checkpoints(self.folder) if at <= step]
        half_written = [path for at, path in list_checkpoints(self.folder) if at < step and path not in complete]
        for path in [*(complete[:-keep] if keep else []), *half_written]:
            delete_checkpoint(path)


# Keys that a resumed run may have otherwise, by the reason; every other one decides the weights.
DECIDES_NOTHING: dict[str, str] = {
    "where it lies and what it is called": "output_dir run_name project license card_language push_to_hub hub_token "
    "hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision trackio_space_id trackio_bucket_id "
    "trackio_static_space_id",
    "how long it goes on; longer runs go on from shorter ones": "max_tokens max_steps num_train_epochs max_kwh "
    "max_cost max_hours hard_stop",
    "compared as it was given, without what follows from the length": "lr_scheduler_kwargs",
    "data and tokenizer, which are compared by their hashes": "tokenizer packed conversations preferences inputs "
    "validation_inputs validation_fraction text_column txt_unit context invalid_rows "
    "long_conversations assistant_only_loss packing learns_answers",
    "how the ranks there are share a step, and what suits the machine": "per_device_train_batch_size "
    "gradient_accumulation_steps auto_find_batch_size use_cpu local_rank accelerator_config parallelism_config "
    "deepspeed fsdp fsdp_config ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout "
    "ddp_find_unused_parameters dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers "
    "dataloader_prefetch_factor dataloader_multiprocessing_context dataloader_in_order torch_empty_cache_steps",
    "the same arithmetic, rounded otherwise": "bf16 fp16 tf32 attn_implementation chunked_loss compile_layers "
    "gradient_checkpointing gradient_checkpointing_kwargs activation_checkpointing activation_checkpointing_kwargs "
    "activation_offloading torch_compile torch_compile_backend torch_compile_mode use_liger_kernel liger_kernel_config "
    "use_cache full_determinism precompute_ref_log_probs precompute_ref_batch_size",
    "what is told, scored and saved, and when": "logging_strategy logging_steps logging_first_step "
    "logging_nan_inf_filter log_on_each_node log_level log_level_replica include_num_input_tokens_seen disable_tqdm "
    "report_to eval_strategy eval_steps eval_delay eval_on_start eval_max_tokens eval_do_concat_batches "
    "eval_use_gather_object eval_accumulation_steps eval_packing per_device_eval_batch_size bf16_full_eval "
    "fp16_full_eval include_for_metrics batch_eval_metrics prediction_loss_only metric_for_best_model "
    "greater_is_better load_best_model_at_end save_strategy save_steps save_total_limit save_on_each_node "
    "save_only_model sample_prompts sample_new_tokens signal_data_dir signal_items cloze_items check_first_loss "
    "final_answers final_answer_tokens skip_memory_metrics debug merge country_iso_code region pue price",
    "set by this package or without effect": "remove_unused_columns label_names train_sampling_strategy "
    "length_column_name average_tokens_across_devices do_train do_eval do_predict resume_from_checkpoint "
    "restore_callback_states_from_checkpoint ignore_data_skip enable_jit_checkpoint dataloader_drop_last "
    "dataset_num_proc dataset_kwargs dataset_text_field max_length truncation_mode trust_remote_code",
}
IDENTITY_VERSION = 2  # of environment.json: since 2 a key that is missing had its default


def run_identity(config: Any, names: list[str], hashes: dict[str, str]) -> dict[str, Any]:
    """Return what makes two starts the same run: everything that decides the weights, but not the length.

    Args:
        config: the whole one, resolved.
        names: keys that are told always; of the others that decide (see `DECIDES_NOTHING`) those that are not at their
            defaults.
        hashes: of the data and the tokenizer.
    """
    values = {name: getattr(config, name) for name in names} | config.given_shares
    found = {name: _as_text(values[name]) for name in names}
    defaults = identity_defaults(type(config))
    for name, default in defaults.items():
        text = _as_text(config.given_schedule if name == "lr_scheduler_kwargs" else getattr(config, name))
        if name not in found and text != default:
            found[name] = text
    return {**found, **hashes}


def identity_defaults(config_class: type) -> dict[str, str]:
    """Return the defaults of the keys of a config that decide the weights, as an identity has them."""
    excluded = set(" ".join(DECIDES_NOTHING.values()).split()) - {"lr_scheduler_kwargs"}
    known = [item for item in fields(config_class) if item.init and item.name not in excluded]
    return {item.name: _as_text(None if item.default is MISSING else item.default) for item in known}


def _as_text(value: Any) -> str:
    if isinstance(value, dict):  # the order in which somebody wrote its keys decides nothing
        value = dict(sorted(value.items())) or None
    return str(getattr(value, "value", value))


def _files_of_speed_tests(folder: Path) -> set[str]:
    """Return the energy files of a folder in which no run has begun, if they are of speed tests alone."""
    starts = [] if (folder / ENVIRONMENT_NAME).is_file() else read_starts(ledger_path(folder, 0))
    if not starts or not all(start.is_speed_test for start in starts):
        return set()
    return {path.name for path in (ledger_path(folder, 0), *emission_files(folder))}


def _ways_on(folder: Path) -> str:
    """Return what somebody can do who wants to go on with other settings."""
    whole = [path for _, path in complete_checkpoints(folder) if (path / "config.json").is_file()]
    if not whole:
        return "Choose another folder."
    return (
        f"Choose another folder; a new run there can begin with these weights: --model_name_or_path {whole[-1]} "
        "--output_dir NEW (in place of --preset; its optimizer and its schedule begin anew)."
    )


def check_run_folder(folder: Path, identity: dict[str, Any], defaults: dict[str, str] | None = None) -> str:
    """Return the state of a run's folder: `new`, `resume` or `complete`.

    Args:
        folder: the run's.
        identity: of the run that is to go on there.
        defaults: of the keys that an identity tells only where they differ from them.

    Raises:
        InputError: the folder holds another run, or files that are no run's.
    """
    place = StageFolder(folder, "training", "run", _PREPARED | _files_of_speed_tests(folder))
    environment = place.begun()
    if environment is None:
        return "new"
    defaults, given = defaults or {}, {}
    config = folder / CONFIG_NAME
    # Earlier versions told a few keys alone; the others are in `config.yaml` where they were given.
    if environment.get("identity_version", 1) < IDENTITY_VERSION and config.is_file():
        values = load_yaml(config.read_text(encoding="utf-8"), str(config))
        given = {name: _as_text(value) for name, value in values.items() if name in defaults}
    place.ensure_same({**defaults, **given, **environment["identity"]}, defaults | identity, _ways_on(folder))
    return "complete" if place.is_complete else "resume"
