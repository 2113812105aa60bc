"""Pretraining: the rows and batches that the Trainer reads, held-out scores, questions while it trains, and the run.

`pretrain` checks a config, `build_run` makes model, Trainer and callbacks, `run.execute` trains, `_finish` scores all
held-out documents and writes the manifest.
"""

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset
from transformers import EvalPrediction, TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed

from ..checkpointing.checkpoints import recorded_branch
from ..checks import counted
from ..data.input_files import hub_datasets
from ..evaluation.held_out import HeldOutWindows, already_scored, window_nats
from ..evaluation.scoring import SignalTask, can_score, cloze_task, local_tasks, score_signal
from ..planning.memory import REPEATS_WORTH_READING
from ..stage_folder import DECAY_NOW_NAME
from .config import DEFAULT_PROMPTS, PretrainConfig
from .decay import SCHEDULE, Decision, can_begin_early, decay_begins, decay_length, stable_checkpoints
from .guards import StepGuard, describe_guards
from .optimizer import describe_optimizer
from .run import (
    NOT_EVALUATED,
    Run,
    assemble_run,
    close_run_folder,
    describe_length,
    describe_model,
    describe_training,
    execute,
    planned_epochs,
)
from .run_plan import PretrainPlan, Resolved, plan_run
from .speed import apply_speed, describe_speed, eager, zero_stage_of
from .trainer import Pretrainer, SampleCallback

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..data.packed import PackedCorpus


class TrainingRows(Dataset[dict[str, NDArray[np.int64]]]):
    """A map-style dataset of exactly the rows of a run: the packed rows, repeated as often as the run needs.

    The first epoch has the packed order (shuffled once when packing); each later epoch is another permutation.
    Because the dataset is as long as the run, every optimizer step has all its micro-batches, no row is dropped
    between two epochs, and a resumed run finds its next row by the row's number.

    Attributes:
        left_out: rows that are left out, as ranges (first, count) in the endless order of rows, sorted; the rows behind
            them move up.
    """

    def __init__(self, rows: NDArray[Any], num_rows: int, seed: int) -> None:
        """Show `num_rows` rows of an array (rows, context), which is repeated as often as needed."""
        self.rows, self.num_rows, self.seed = rows, num_rows, seed
        self._epoch = 0
        self._order: NDArray[np.int64] | None = None
        self.left_out: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, index: int) -> dict[str, NDArray[np.int64]]:
        return {"input_ids": self.rows[self.row_of(index)].astype(np.int64)}

    def __getitems__(self, indices: list[int]) -> NDArray[np.int64]:
        """Return the rows of a batch, (rows, context), in one read; torch's loader calls this where it exists."""
        return self.rows[[self.row_of(index) for index in indices]].astype(np.int64)

    def place_of(self, index: int) -> int:
        """Return the place of a row of the run in the endless order of rows."""
        for first, count in self.left_out:
            index += count if index >= first else 0
        return index

    def row_of(self, index: int) -> int:
        """Return the number of a row of the run among the packed rows."""
        return self._place(*divmod(self.place_of(index), len(self.rows)))

    def _place(self, epoch: int, place: int) -> int:
        if epoch == 0:
            return place
        if self._order is None or self._epoch != epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([self.seed, epoch]).permutation(len(self.rows))
        return int(self._order[place])


class CausalCollator:
    """Stack rows to a batch; rows without labels are their own labels, shorter rows are padded on the right.

    Padding needs no attention mask: in a causal model no token before it sees it, and its labels are -100.
    """

    def __init__(self, pad_token_id: int) -> None:
        """Pad with `pad_token_id`."""
        self.pad_token_id = pad_token_id

    def __call__(self, rows: list[dict[str, NDArray[np.int64]]] | NDArray[np.int64]) -> dict[str, torch.Tensor]:
        """Return `input_ids` and `labels`, both (rows, longest row); full rows come as one array."""
        if isinstance(rows, np.ndarray):
            full = torch.from_numpy(rows)
            return {"input_ids": full, "labels": full}
        length = max(len(row["input_ids"]) for row in rows)
        input_ids = np.full((len(rows), length), self.pad_token_id, dtype=np.int64)
        labels = np.full((len(rows), length), -100, dtype=np.int64)
        for place, row in enumerate(rows):
            tokens = row["input_ids"]
            input_ids[place, : len(tokens)] = tokens
            labels[place, : len(tokens)] = row.get("labels", tokens)
        return {"input_ids": torch.from_numpy(input_ids), "labels": torch.from_numpy(labels)}


_CLOZE_SHARE = 0.1  # of the tokens of an evaluation may be cloze questions: a few thousandths of a run


def build_signal_tasks(
    config: "PretrainConfig", packed: "PackedCorpus", document_ids: Iterable[int], tokenizer: Any
) -> list[SignalTask]:
    """Return the tasks that a run's config asks for; cloze questions are made from the held-out documents.

    Raises:
        InputError: a folder without data, or data that does not fit.
    """
    tasks = []
    if config.cloze_items:
        texts = []
        for document in packed.documents[list(document_ids)]:
            start, count = int(document["offset"]), int(document["num_tokens"])
            ids = packed.validation[start + 1 : start + count - 1].tolist()
            texts.append(str(tokenizer.decode(ids, skip_special_tokens=False)))
        most = int((config.eval_max_tokens or 0) * _CLOZE_SHARE)
        cloze = cloze_task(texts, tokenizer, config.cloze_items, most)
        tasks += [cloze] if cloze else []
    if config.signal_data_dir is not None:
        tasks += local_tasks(config.signal_data_dir, tokenizer, config.signal_items)
    return tasks


class SignalCallback(TrainerCallback):
    """Ask the model the questions of some tasks, and add accuracy and bits per byte to the newest held-out summary.

    Must come before the callback that writes that summary. Under ZeRO 3, where each rank holds a part of every layer,
    all ranks compute the same questions together; otherwise rank 0 computes them alone.
    """

    def __init__(
        self, tasks: list[SignalTask], evaluation: Any, batch_size: int, zero_stage: int, compiles: bool
    ) -> None:
        """Ask these tasks; compiled layers are run uncompiled, because questions have many lengths."""
        self.tasks, self.evaluation, self.batch_size, self.compiles = tasks, evaluation, batch_size, compiles
        self.all_ranks = zero_stage == 3
        self._step, self._figures = -1, dict[str, float]()

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Score the model once a step: the final evaluation is of the same model and only adds documents."""
        if not self.tasks or not (self.all_ranks or state.is_world_process_zero):
            return
        if self._step != state.global_step:
            model = kwargs["model"]
            was_training = model.training
            model.eval()
            with eager() if self.compiles else contextlib.nullcontext():
                self._figures = score_signal(model, self.tasks, self.batch_size)
            model.train(was_training)
            self._step = state.global_step
        self.evaluation.last.update(self._figures)


class HeldOutEvaluation:
    """The Trainer's `compute_metrics` for held-out windows; `last` is the newest full summary, with its sources."""

    plot_key, plot_label = "bits_per_byte", "held-out bits per byte"

    def __init__(self, windows: HeldOutWindows) -> None:
        """Score these windows."""
        self.windows = windows
        self.last: dict[str, Any] | None = None
        self.last_step = -1  # set by the metrics callback

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """Return the figures of all documents; those of each source are in `last`."""
        self.last = self.windows.summarise(np.asarray(prediction.predictions))
        return {name: self.last[name] for name in ("bits_per_byte", "perplexity", "nats_per_token")}

    def describe(self) -> str:
        """Return the newest summary as a line."""
        assert self.last is not None
        return (
            f"{self.last['bits_per_byte']:.4f} bits per byte  perplexity {self.last['perplexity']:.2f}  "
            f"({self.last['documents']} documents)"
        ) + "".join(f"  {name.replace('_', ' ')} {self.last[name]:.4f}" for name in self.last if self._is_signal(name))

    @staticmethod
    def _is_signal(name: str) -> bool:
        return name.endswith(("_acc", "_acc_norm", "_bits_per_byte"))


def build_run(config: PretrainConfig, plan: PretrainPlan) -> Run:
    """Return the Trainer of a checked plan with its callbacks."""
    evaluation = HeldOutEvaluation(
        HeldOutWindows(plan.packed, plan.packed.manifest["context"], max_tokens=config.eval_max_tokens)
    )
    pad_token_id = plan.tokenizer.pad_token_id
    model = _build_model(config, plan)
    trainer = Pretrainer(
        model=model,
        args=config,
        data_collator=CausalCollator(0 if pad_token_id is None else pad_token_id),
        train_dataset=TrainingRows(plan.packed.train, config.max_steps * config.rows_per_step, config.seed),
        eval_dataset=evaluation.windows if config.eval_strategy != "no" else None,
        processing_class=plan.tokenizer,
        compute_metrics=evaluation,
    )
    zero_stage = zero_stage_of(config) or 0
    trainer.speed = config.speed_plan(plan.model_config, zero_stage)
    if config.eval_strategy != "no":
        held_out = plan.packed.documents["num_tokens"]
        trainer.final_share = float(held_out.sum() / held_out[evaluation.windows.document_ids].sum())
    trainer.compiles = trainer.speed.compile_layers
    apply_speed(model, trainer.speed)
    trainer.preprocess_logits_for_metrics = window_nats if trainer.speed.loss == "whole" else already_scored
    prompts = DEFAULT_PROMPTS if config.sample_prompts is None else config.sample_prompts
    samples = SampleCallback(plan.folder, plan.tokenizer, prompts, config.sample_new_tokens, zero_stage)
    sources = plan.packed.manifest["sources"].values()
    bytes_per_token = sum(source["bytes"] for source in sources) / sum(source["tokens"] for source in sources)
    lines = {
        "length": describe_length(config, plan, len(plan.packed.train)),
        **describe_branch(config),
        **describe_branches(config, plan.folder, config.early_end),
        **describe_request(config, plan.folder),
        **warn_of_repeats(planned_epochs(config, len(plan.packed.train))),
        "speed": describe_speed(trainer.speed, config),
        "optimizer": describe_optimizer(config, plan.model_config, zero_stage),
        "guards": describe_guards(config),
    }
    if plan.packed.manifest.get("same_document"):
        lines["held out"] = "the last part of the only document: scores are of the same document"
    asks = config.eval_strategy != "no" and can_score(model)
    if config.eval_strategy != "no" and not asks:
        kind = model.config.model_type
        lines["signals"] = f"no questions while it trains: they are asked of Llamas alone, and this is a {kind}"
    run = assemble_run(trainer, config, plan, evaluation, samples, lines, bytes_per_token=bytes_per_token)
    trainer.guard = StepGuard(trainer, config, plan, run.stop.is_asked)
    trainer.callback_handler.callbacks.insert(-1, trainer.clock.watch(trainer.guard, "callbacks"))
    if asks:
        tasks = build_signal_tasks(config, plan.packed, evaluation.windows.document_ids, plan.tokenizer)
        rows = int(config.per_device_eval_batch_size or 8)
        signal = SignalCallback(tasks, evaluation, rows, zero_stage, trainer.compiles)
        # The first of all callbacks, and so before the one that writes the summary.
        trainer.callback_handler.callbacks.insert(0, trainer.clock.watch(signal, "evaluation"))
    return run


def _build_model(config: PretrainConfig, plan: PretrainPlan) -> "PreTrainedModel":
    from transformers import LlamaForCausalLM
    from transformers.utils import logging as transformers_logging

    from ..models import from_pretrained

    transformers_logging.disable_progress_bar()  # a bar per saved shard would break up ours
    set_seed(config.seed)  # every rank starts from the same weights
    if config.model_name_or_path is not None:
        model, _ = from_pretrained(config.model_name_or_path, config.model_revision)
        model.config.max_position_embeddings = plan.model_config.max_position_embeddings
        model.set_attn_implementation(config.attn_implementation)
        return model.float()
    # Not AutoModel.from_config: under ZeRO 3 that initialises inside deepspeed.zero.Init, which draws other weights.
    model = LlamaForCausalLM(plan.model_config)
    model.set_attn_implementation(config.attn_implementation)
    model.generation_config.pad_token_id = plan.model_config.pad_token_id
    return model


def pretrain(config: PretrainConfig, given: Resolved | dict[str, Any]) -> Path:
    """Run or resume a pretraining run in this process (one of its ranks) and return its folder.

    Args:
        config: the config, with everything derived.
        given: the keys as the user gave them, for `config.yaml`; or all that was resolved before (`read_run`).

    Raises:
        InputError: see `plan_run`; also a folder in which another process trains.
        StoppedResumable: a signal stopped it after a complete checkpoint.
        RunFailedError: a step was bad (`guards`), or memory ran out.
    """
    return execute(config, plan_run, given, build_run, _finish)


def _finish(run: Run, config: PretrainConfig, plan: PretrainPlan, seconds: float) -> None:
    """Score all held-out documents, save the final model, and write the manifest last."""
    trainer, evaluation = run.trainer, run.evaluation
    final: dict[str, Any] | None = None
    if config.eval_strategy != "no":
        everything = HeldOutWindows(plan.packed, plan.packed.manifest["context"])
        if len(everything) > len(evaluation.windows) or evaluation.last_step != trainer.state.global_step:
            evaluation.windows = everything
            trainer.evaluate(everything, metric_key_prefix="final")
        final = evaluation.last
    trainer.save_model(str(plan.folder))

    def describe(records: list[dict[str, Any]]) -> dict[str, Any]:
        initial = next((record for record in records if "bits_per_byte" in record and record["step"] == 0), None)
        training = describe_training(trainer, config, plan, records, seconds, len(plan.packed.train))
        if run.cap is not None and run.cap.decision is not None:
            decision = run.cap.decision
            training["ended_as_asked" if decision.asked_for else "ended_by_cap"] = decision.reason
        training["bad_steps"] = trainer.guard.describe()
        return {
            "model": describe_model(config, plan),
            "data": describe_data(config, plan),
            "training": {**training, "speed": describe_speed(trainer.speed, config)},
            "branch": recorded_branch(plan.folder),
            "results": {"initial": initial or NOT_EVALUATED, "final": final or NOT_EVALUATED},
        }

    branches = describe_branches(config, plan.folder, run.cap.decision if run.cap else None, is_ended=True)
    close_run_folder(run, config, plan, "pretrain", describe, branches)


def describe_branch(config: Any) -> dict[str, str]:
    """Return the banner's line of a branch, by its name, or none."""
    if config.decay_from is None:
        return {}
    return {
        "branch": f"of {config.decay_from}; it equals the run planned with max_tokens: "
        f"{config.max_steps * config.tokens_per_step}, tokens_per_step: {config.tokens_per_step}, warmup_steps: "
        f"{int(config.warmup_steps)}; the rate falls after step {decay_begins(config):,}"
    }


def describe_branches(config: Any, folder: Path, decision: Decision | None, is_ended: bool = False) -> dict[str, str]:
    """Return a line, by its name, about the lengths that can be branched off the checkpoints of a run, or none.

    Args:
        config: a `PretrainConfig`.
        folder: of the run.
        decision: to end it earlier.
        is_ended: no checkpoint is to come.
    """
    if config.lr_scheduler_type != SCHEDULE or config.decay_fraction == 1:
        return {}
    begins, keep = decision.step if decision else decay_begins(config), config.save_checkpoints_kept
    stable = stable_checkpoints(folder, begins)
    if not stable and config.save_strategy == "no":
        return {"branches": "none: save_strategy=no leaves no checkpoints to branch off"}
    limit = f"save_total_limit={keep} keeps the newest {counted(keep, 'checkpoint')} alone" if keep else ""
    advice = f"; {limit}: set null, or keep one under another name there (cp -rl checkpoint-N keep-N)" if limit else ""
    if not stable and is_ended:
        return {"branches": f"none: no checkpoint of step {begins:,} or before is left{'; ' * bool(limit)}{limit}"}
    if not stable:
        return {"branches": f"of any length, off checkpoints up to step {begins:,}{advice}"}
    ways = [f"{path.name} from {(step + decay_length(config, step)) * config.tokens_per_step:,} tokens on"
            for step, path in stable]  # fmt: skip
    command = f"ttl pretrain --decay_from {stable[-1][1]} --max_tokens N --output_dir NEW"
    return {"branches": f"other lengths, {', '.join(ways)}: {command}{advice * (not is_ended)}"}


def describe_request(config: Any, folder: Path) -> dict[str, str]:
    """Return the banner's line about how the decay of a run is asked for, by its name, or none."""
    if not can_begin_early(config) or config.early_end is not None:
        return {}
    return {"decay now": f"`touch {folder / DECAY_NOW_NAME}` begins the decay at the next logging step"}


def warn_of_repeats(epochs: float) -> dict[str, str]:
    """Return a banner line, by its name, for a pretraining that reads its rows too often; else no line."""
    if epochs <= REPEATS_WORTH_READING:
        return {}
    return {
        "repeats": f"each row is read {epochs:.1f} times; after {REPEATS_WORTH_READING} new text teaches more, and "
        "in the end the model knows its rows by heart: watch the held-out score"
    }


def describe_data(config: Any, plan: PretrainPlan) -> dict[str, Any]:
    """Return the manifest's record of the packed rows and where they come from."""
    manifest = plan.packed.manifest
    return {
        "packed": str(config.packed),
        "inputs": manifest["plan"]["inputs"],
        "hub_datasets": hub_datasets(manifest["config"]["inputs"]),
        "tokenizer_sha256": manifest["tokenizer_sha256"],
        "packed_sha256": manifest["hashes"]["train.npy"],
        **({"corpora": manifest["corpora"]} if "corpora" in manifest else {}),
        "sources": manifest["sources"],
        "validation_sources": manifest["validation_sources"],
        "train_tokens": manifest["train_tokens"],
        "validation_documents": len(plan.packed.documents),
        "same_document": bool(manifest.get("same_document")),  # held out is the end of the only one
    }
