"""Saving and resuming: checkpoints that prove themselves whole, the one a run resumes from, and whose folder it is.

A save: the Trainer writes `checkpoint-N`, all ranks wait, and `CheckpointCallback` hashes its files, writes the marker
`complete.json` and deletes what is too old. (The Trainer's own rotation runs before every rank has saved and could
delete the last good checkpoint.) A resume: `choose_checkpoint` takes the newest whose files are as the marker says.
"""

import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..arguments import read_mapping
from ..checks import (
    InputError,
    RunFailedError,
    beside_the_model,
    counted,
    ensure,
    format_bytes,
    free_disk_bytes,
)
from ..distributed import from_first, least_over_ranks, wait_for_ranks
from ..energy.emissions import emission_files
from ..energy.ledger import ledger_path, read_starts
from ..stage_folder import (
    CONFIG_NAME,
    ENVIRONMENT_NAME,
    MARKER_NAME,
    PROGRESS_FOLDER,
    SPEED_TEST_NAME,
    StageFolder,
    without_place,
)
from .checkpoints import (
    Marker,
    checkpoint_faults,
    checkpoint_path,
    complete_checkpoints,
    delete_checkpoint,
    hash_files,
    how_to_restore,
    lease,
    list_checkpoints,
    read_marker,
    refuse_copy_without_state,
    refuse_strangers,
    sync_files,
    ways_on,
    write_marker,
)
from .optimizer_state import is_by_name

# What `ttl` writes into a run's folder before its ranks start.
_PREPARED = frozenset({"packed", "conversations", "preferences", SPEED_TEST_NAME, "speed-test", "speed-test.log",
                       "publish.log", PROGRESS_FOLDER})  # fmt: skip
_FREE_SHARE = 1.05  # of the disk space that a save needs: other files of the run are written meanwhile


class CheckpointCallback(TrainerCallback):
    """Mark each checkpoint as complete once all ranks have written it, then delete old ones. Must be the last callback.

    A save that does not fit on the disk is left out on all ranks alike before it begins, and training goes on.
    """

    def __init__(
        self,
        folder: Path,
        keep: int | None,
        zero_stage: int,
        needed_bytes: int,
        final_bytes: int,
        figures: Callable[[int], dict[str, Any]],
        clock: Any,
    ) -> None:
        """Watch the saves of a run.

        Args:
            folder: the run's folder.
            keep: complete checkpoints kept (None: all).
            zero_stage: DeepSpeed's stage, 0 without.
            needed_bytes: size of a checkpoint by arithmetic; once one is written, its real size counts.
            final_bytes: size of the files that are written at the end beside the last checkpoint.
            figures: returns a step's figures for the marker, by the names of `Marker`.
            clock: the `trainer.Clock` that counts the time of marking, and apart from it the time of hashing.
        """
        self.folder, self.keep, self.zero_stage = folder, keep, zero_stage
        self.needed_bytes, self.final_bytes = needed_bytes, final_bytes
        self.figures, self.clock = figures, clock
        self._withdrawn = 0
        self._warned_of_disks = False
        self._saved_bytes = 0  # of the last checkpoint; known on rank 0 alone

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Leave a save out for which the disk has no room.

        Raises:
            RunFailedError: it is the last save, by the run's length or by a signal; raised on every rank.
        """
        # Asked before an evaluation too: after a signal in it, the Trainer saves without another call of this.
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
        """Return why this step cannot be saved, the same on all ranks, or None; delete old checkpoints if that helps.

        A damaged checkpoint of this step from an earlier start is deleted: its marker must not lie in a folder that is
        being written.
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
            f"needs about {format_bytes(needed_bytes)} on the disk of {self.folder} and {format_bytes(free_bytes)} are "
            "free: free some space there or lower save_total_limit"
        )

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Wait for all ranks and disks, hash the files, write the marker, delete old and unfinished checkpoints."""
        newest = checkpoint_path(self.folder, state.global_step)
        with self.clock.part("marking"):
            wait_for_ranks()
            if args.local_process_index == 0:
                sync_files(newest)
            # This reduction also waits for the disks of the other machines.
            is_shared = least_over_ranks(int((newest / "trainer_state.json").is_file()), args.device)
            if state.is_world_process_zero:
                with self.clock.part("hashing"):
                    files = hash_files(newest)
                self._saved_bytes = sum(record.bytes for record in files.values())
                step, figures = state.global_step, self.figures(state.global_step)
                write_marker(newest, Marker(step, args.world_size, self.zero_stage, files=files, **figures))
                if not is_shared and not self._warned_of_disks:
                    self._warned_of_disks = True
                    tqdm.write(
                        f"warning    not every machine sees output_dir={self.folder} of the first one: {MARKER_NAME} "
                        "vouches for the first machine's files alone, and the run cannot be resumed on several "
                        "machines. Use a disk that all of them share."
                    )
                with beside_the_model("deleting old checkpoints"):
                    self._rotate(state.global_step, self.keep)
        self._withdrawn = 0

    def _rotate(self, step: int, keep: int | None) -> None:
        """Delete complete checkpoints beyond the newest `keep`, and half-written ones; leased ones stay for now.

        Checkpoints of later steps, which an earlier start wrote, are neither counted nor deleted.
        """
        complete = [path for at, path in complete_checkpoints(self.folder) if at <= step]
        half_written = [path for at, path in list_checkpoints(self.folder) if at < step and path not in complete]
        for path in [*(complete[:-keep] if keep else []), *half_written]:
            delete_checkpoint(path)


# Keys that may differ when a run is resumed, by the reason; every other key decides the weights.
DECIDES_NOTHING: dict[str, str] = {
    "where the run lies, what it is called": "output_dir run_name project license card_language push_to_hub hub_token "
    "hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision trackio_space_id trackio_bucket_id "
    "trackio_static_space_id",
    "length: a longer run goes on from a shorter one": "max_tokens max_steps num_train_epochs max_kwh "
    "max_cost max_hours hard_stop preflight",
    "a branch is the run that was planned with its length, whatever checkpoint it begins at": "decay_from",
    "what a bad step leads to: the rows that were left out are compared themselves": "on_bad_step spike_factor "
    "max_bad_steps",
    "compared as the user gave it, without what follows from the length": "lr_scheduler_kwargs",
    "data and tokenizer, which are compared by their hashes": "tokenizer packed conversations preferences inputs "
    "validation_inputs validation_fraction text_column txt_unit context invalid_rows "
    "long_conversations assistant_only_loss packing learns_answers",
    "how ranks share a step, and what suits the machine": "per_device_train_batch_size "
    "gradient_accumulation_steps auto_find_batch_size use_cpu local_rank accelerator_config parallelism_config "
    "deepspeed fsdp fsdp_config ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout "
    "ddp_find_unused_parameters dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers "
    "dataloader_prefetch_factor dataloader_multiprocessing_context dataloader_in_order torch_empty_cache_steps",
    "the same arithmetic, rounded otherwise": "bf16 fp16 tf32 attn_implementation chunked_loss compile_layers "
    "gradient_checkpointing gradient_checkpointing_kwargs activation_checkpointing activation_checkpointing_kwargs "
    "activation_offloading torch_compile torch_compile_backend torch_compile_mode use_liger_kernel liger_kernel_config "
    "use_cache full_determinism precompute_ref_log_probs precompute_ref_batch_size",
    "what is logged, scored and saved, and when": "logging_strategy logging_steps logging_first_step "
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
IDENTITY_VERSION = 2  # of environment.json: since version 2, a key that is missing there had its default


def run_identity(config: Any, names: list[str], hashes: dict[str, str]) -> dict[str, Any]:
    """Return what makes two starts the same run: everything that decides the weights, but not the length.

    Args:
        config: the resolved config.
        names: keys that are always part of it; other keys that decide the weights (all but `DECIDES_NOTHING`) are part
            of it where they differ from their defaults.
        hashes: of the data and the tokenizer.
    """
    found = {name: _as_text(config.given_shares.get(name, getattr(config, name))) for name in names}
    for name, default in identity_defaults(type(config)).items():
        text = _as_text(config.given_schedule if name == "lr_scheduler_kwargs" else getattr(config, name))
        if name not in found and text != default:
            found[name] = text
    return {**found, **hashes}


def identity_defaults(config_class: type) -> dict[str, str]:
    """Return the defaults of the keys of a config that decide the weights, as texts."""
    excluded = set(" ".join(DECIDES_NOTHING.values()).split()) - {"lr_scheduler_kwargs"}
    deciding = [item for item in fields(config_class) if item.init and item.name not in excluded]
    return {item.name: _as_text(None if item.default is MISSING else item.default) for item in deciding}


def _as_text(value: Any) -> str:
    if isinstance(value, dict):  # the order of its keys decides nothing
        value = dict(sorted(value.items())) or None
    return str(getattr(value, "value", value))


def _files_of_speed_tests(folder: Path) -> set[str]:
    """Return the energy files of a folder in which no run has begun, if all starts in its ledger were speed tests."""
    starts = [] if (folder / ENVIRONMENT_NAME).is_file() else read_starts(ledger_path(folder, 0))
    if not starts or not all(start.is_speed_test for start in starts):
        return set()
    return {path.name for path in (ledger_path(folder, 0), *emission_files(folder))}


def check_run_folder(folder: Path, identity: dict[str, Any], defaults: dict[str, str] | None = None) -> str:
    """Return the state of a run's folder: `new`, `resume` or `complete`.

    Args:
        folder: the run's folder.
        identity: the identity of the run that is to be started there, see `run_identity`.
        defaults: the defaults of the keys that an identity leaves out where they have them.

    Raises:
        InputError: the folder holds another run, or files that do not belong to a run.
    """
    refuse_copy_without_state(folder)
    place = StageFolder(folder, "training", "run", _PREPARED | _files_of_speed_tests(folder))
    environment, defaults = place.begun(how_to_restore(folder)), defaults or {}
    if environment is None:
        return "new"
    before, now = recorded_identity(folder, environment, defaults), defaults | identity
    for name in before.keys() & now.keys():  # the record came from a bucket, for which its places were cut
        before[name] = now[name] if before[name] == without_place(now[name]) else before[name]
    place.ensure_same(before, now, ways_on(folder, environment["identity"]))
    return "complete" if place.is_complete else "resume"


def recorded_identity(folder: Path, environment: dict[str, Any], defaults: dict[str, str]) -> dict[str, Any]:
    """Return the identity in the record of a run that has begun, with the defaults of the keys that it leaves out."""
    given, config = {}, folder / CONFIG_NAME
    # Earlier versions recorded few keys; the others are in `config.yaml` where the user gave them.
    if environment.get("identity_version", 1) < IDENTITY_VERSION and config.is_file():
        values = read_mapping(config)
        given = {name: _as_text(value) for name, value in values.items() if name in defaults}
    return {**defaults, **given, **environment["identity"]}


# What a checkpoint's config.json must have in common with the model that resumes from it.
_SHAPE = ("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
          "num_key_value_heads", "head_dim", "tie_word_embeddings")  # fmt: skip
_MOST_FAULTS = 3  # named of one checkpoint


def choose_checkpoint(config: Any, plan: Any, zero_stage: int, held: ExitStack | None = None) -> Path | None:
    """Return the newest checkpoint that is whole and of this model, or None; the same on every rank.

    A branch without a checkpoint of its own begins at that of another run.

    Rank 0 alone reads and hashes, and prints which checkpoints it skipped and why; all ranks have to call this.

    Args:
        config: a `RunSettings`; checkpoints after its last step do not count.
        plan: the checked plan, a `RunPlan`.
        zero_stage: DeepSpeed's stage now, 0 without.
        held: takes the lease of a checkpoint of another run, to be given back once it is loaded.

    Raises:
        InputError: there are complete checkpoints and none of them holds; or the newest that does was written under
            ZeRO by another number of ranks or another stage, which DeepSpeed cannot load; or not every rank sees it.
    """

    def choose() -> tuple[Path | None, str]:
        try:
            step = _newest_whole(plan, config.max_steps)
            path = None if step is None else checkpoint_path(plan.folder, step)
            if path is None and getattr(config, "decay_from", None):
                path = _whole_of_other_run(Path(config.decay_from), plan, held)
            if path is not None:
                _check_ranks(path, config.world_size, zero_stage)
            return path, ""
        except InputError as error:
            return None, str(error)

    path: Path | None
    path, refusal = from_first(choose)
    if refusal:
        raise InputError(refusal)
    if path is None:
        return None
    ensure(
        least_over_ranks(int((path / MARKER_NAME).is_file()), config.device),
        f"output_dir={path.parent}: not every machine sees {path.name} there, and each rank has to read it. Put the "
        "folder on a disk that all machines share.",
    )
    return path


def _whole_of_other_run(path: Path, plan: Any, held: ExitStack | None) -> Path:
    """Return the checkpoint that a branch begins at, kept from being deleted where its run's folder can be written.

    Raises:
        InputError: it is not whole, of another model, or not there any more.
    """

    def check(hashes: bool) -> None:
        faults = checkpoint_faults(path, hashes) or _other_shape(path, plan)
        ensure(not faults, f"decay_from={path}: {'; '.join(faults[:_MOST_FAULTS])}. Give another checkpoint.")

    check(hashes=True)  # before the lease, whose file stays in the other run: a refusal writes nothing
    if held is not None and os.access(path.parent, os.W_OK):
        held.enter_context(lease(path))
        check(hashes=False)  # until the lease the other run could still delete it
    _print_checked(path)
    return path


def _newest_whole(plan: Any, max_step: int) -> int | None:
    """Return the step of the newest checkpoint that holds; print which newer ones were skipped.

    Raises:
        InputError: complete ones are there, and none holds.
    """
    refuse_strangers(plan.folder, max_step)
    reasons = {}
    for step, path in reversed(list_checkpoints(plan.folder)):
        if step > max_step:
            reasons[path] = f"is of a step after the {max_step} asked for"
            continue
        faults = checkpoint_faults(path) or _other_shape(path, plan)
        if not faults:
            _print_checked(path)
            return step
        more = len(faults) - _MOST_FAULTS
        reasons[path] = "; ".join(faults[:_MOST_FAULTS]) + (f"; and {more} more" if more > 0 else "")
        print(f"skipped    {path.name}: {reasons[path]}", flush=True)
    complete = [path for _, path in complete_checkpoints(plan.folder)]
    ensure(
        not complete,
        f"output_dir={plan.folder}: the run was saved before, and it cannot go on from any of its checkpoints: "
        f"{', '.join(f'{path.name} ({reasons[path]})' for path in complete)}. Restore one from a copy, delete them to "
        "start from the beginning, or choose another folder.",
    )
    return None


def _print_checked(path: Path) -> None:
    files = read_marker(path).files
    found = "saved by an earlier version, without hashes; taken as it is"
    if files is not None:
        size_bytes = sum(record.bytes for record in files.values())
        found = f"{counted(len(files), 'file')}, {format_bytes(size_bytes)}, all as they were saved"
    print(f"checked    {path.name}: {found}", flush=True)


def _other_shape(path: Path, plan: Any) -> list[str]:
    """Return where the config of a checkpoint differs from the run's; an adapter alone has no config to compare."""
    if not (config := path / "config.json").is_file():
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


def _check_ranks(path: Path, world_size: int, zero_stage: int) -> None:
    """Refuse a checkpoint that these ranks cannot load; one with the optimizer's state by name all can, but ZeRO 3."""
    marker, by_name = read_marker(path), is_by_name(path)
    same = (marker.world_size, marker.zero_stage) == (world_size, zero_stage) and not by_name
    ensure(
        same or (zero_stage < 3 and (by_name or marker.zero_stage == zero_stage == 0)),
        f"output_dir={path.parent}: {path.name} was saved by {counted(marker.world_size, 'rank')} under ZeRO stage "
        f"{marker.zero_stage}, and this start has {world_size} under stage {zero_stage} (0 is none). Under ZeRO 3, and "
        "with other optimizers than AdamW, Muon and NorMuon, ranks load what as many ranks saved: start as before, or "
        f"begin a new run with its weights: --model_name_or_path {path} --output_dir NEW (its schedule begins anew).",
    )
