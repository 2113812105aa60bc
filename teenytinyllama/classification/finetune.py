"""One fine-tuning with one seed: the Hugging Face Trainer, scored after each epoch, the best epoch kept.

Metrics, how sure they are, and what an answer that needs no model scores.

The metrics are of the `evaluate` library, but defined here: `evaluate.load` fetches a script from the Hub and runs it,
which needs the network and trust in whatever the script is today.
"""

import contextlib
import math
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import evaluate
import numpy as np
from sklearn.metrics import accuracy_score, f1_score
from torch.utils.data import SequentialSampler
from transformers import (
    DataCollatorWithPadding,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from ..checks import InputError, RunFailedError, ensure
from ..energy.recorder import StageMeter
from ..gpus import choose_precision, has_accelerator, is_out_of_memory
from ..models import avoid_cudnn_attention, finish_saved
from .config import CHOSEN_ON_TEST, MODEL_FOLDER, ClassifyConfig
from .model import Base, Encoded, build_classifier

if TYPE_CHECKING:
    from transformers import EvalPrediction


METRICS = {"accuracy": "accuracy", "f1_macro": "macro-F1"}
_RESAMPLES = 1000


class _LabelMetric(evaluate.Metric):
    """A metric of predicted against true numbers of labels."""

    num_labels: int

    def _info(self) -> evaluate.MetricInfo:
        number = datasets.Value("int32")
        return evaluate.MetricInfo(
            description=str(self.__doc__),
            citation="",
            inputs_description="predictions, references: numbers of labels",
            features=datasets.Features({"predictions": number, "references": number}),
        )


class Accuracy(_LabelMetric):
    """The share of rows whose label is right."""

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {"accuracy": float(accuracy_score(references, predictions))}


class MacroF1(_LabelMetric):
    """The mean over all labels of the task of F1; a label that is neither there nor predicted counts as 0."""

    def _compute(self, predictions: Any, references: Any, num_labels: int) -> dict[str, float]:
        labels = range(num_labels)
        return {"f1_macro": float(f1_score(references, predictions, labels=labels, average="macro", zero_division=0))}


def score(predictions: Any, references: Any, num_labels: int) -> dict[str, float]:
    """Return accuracy and macro-F1 of numbers of labels, as fractions."""
    given = {"predictions": list(map(int, predictions)), "references": list(map(int, references))}
    accuracy = Accuracy(keep_in_memory=True).compute(**given)
    f1 = MacroF1(keep_in_memory=True).compute(**given, num_labels=num_labels)
    return {**accuracy, **f1}


@dataclass(frozen=True)
class Summary:
    """One metric over all seeds.

    Attributes:
        mean: over the seeds.
        deviation: sample standard deviation over the seeds; None with one seed.
        seed_error: standard error of the mean by the seeds; None with one seed.
        item_error: standard error by the choice of the test rows, which all seeds share.
        stderr: both together.
        trivial: what the most frequent training label scores.
    """

    mean: float
    deviation: float | None
    seed_error: float | None
    item_error: float
    stderr: float
    trivial: float

    @property
    def is_trivial(self) -> bool:
        """Return whether the mean is no more than two standard errors above the trivial answer."""
        return self.mean <= self.trivial + 2 * self.stderr

    @property
    def normalised(self) -> float:
        """Return 0 at the trivial answer and 1 at a perfect score."""
        return (self.mean - self.trivial) / (1 - self.trivial) if self.trivial < 1 else 0.0


def summarise(values: list[float], item_errors: list[float], trivial: float) -> Summary:
    """Return the summary of one metric of several seeds."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    seed_error = None if deviation is None else deviation / math.sqrt(len(values))
    item_error = float(np.mean(item_errors))
    return Summary(
        mean=float(np.mean(values)),
        deviation=deviation,
        seed_error=seed_error,
        item_error=item_error,
        stderr=math.hypot(item_error, seed_error or 0.0),
        trivial=trivial,
    )


def item_error(metric: str, predictions: list[int], references: list[int], num_labels: int) -> float:
    """Return the standard error of a score by the choice of its rows.

    Of the accuracy it is the binomial one; of macro-F1 the deviation over 1,000 drawings of the rows with replacement,
    always the same ones.
    """
    truth, found = np.asarray(references), np.asarray(predictions)
    if metric == "accuracy":
        share = float((truth == found).mean())
        return math.sqrt(share * (1 - share) / len(truth))
    cells = truth * num_labels + found  # each row is one cell of the confusion matrix
    generator = np.random.default_rng(0)
    counts = np.bincount(cells, minlength=num_labels**2)
    drawn = generator.multinomial(len(truth), counts / len(truth), size=_RESAMPLES)
    return float(np.std(_macro_f1(drawn.reshape(-1, num_labels, num_labels))))


def _macro_f1(matrices: Any) -> Any:
    """Return the macro-F1 of (many, labels, labels) confusion matrices, true labels first."""
    right = np.diagonal(matrices, axis1=1, axis2=2)
    either = matrices.sum(axis=1) + matrices.sum(axis=2)
    return (2 * right / np.maximum(either, 1)).mean(axis=1)


def majority_scores(train: list[int], test: list[int], num_labels: int) -> dict[str, float]:
    """Return what the most frequent label of the training rows scores on the test rows."""
    most = int(np.bincount(train, minlength=num_labels).argmax())
    return score([most] * len(test), test, num_labels)


CHECKPOINTS = "checkpoints"


class _Rows:
    """A map-style dataset over a list of rows."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


class _Bar(ProgressCallback):
    """The Trainer's progress bar without its lines of raw logs."""

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        """Leave the lines to `_EpochLines`."""


class _EpochLines(TrainerCallback):
    """Say what each epoch scored, and let the energy meter write now and then."""

    def __init__(self, seed: int, meter: StageMeter) -> None:
        self.seed, self.meter = seed, meter

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Give the meter its turn."""
        self.meter.tick()

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any = None, **kwargs: Any
    ) -> None:
        """Print one line."""
        found = metrics or {}
        for split in ("validation", "test"):
            if f"eval_{split}_accuracy" in found:
                print(
                    f"seed {self.seed}, epoch {round(state.epoch or 0)}: {split} accuracy "
                    f"{found[f'eval_{split}_accuracy']:.4f}, macro-F1 {found[f'eval_{split}_f1_macro']:.4f}",
                    flush=True,
                )


class _OrderedTrainer(Trainer):
    """Evaluates rows in their order; transformers 5.23 sorts them by length where training does."""

    def _get_eval_sampler(self, eval_dataset: Any) -> SequentialSampler:
        return SequentialSampler(eval_dataset)


def training_arguments(config: ClassifyConfig, folder: Path, seed: int) -> TrainingArguments:
    """Return the Trainer's arguments of one seed.

    Raises:
        InputError: several GPUs in one process, over which the Trainer would spread, and so enlarge, each batch.
    """
    precision = choose_precision()[0]
    try:
        arguments = TrainingArguments(
            output_dir=str(folder),
            num_train_epochs=config.num_train_epochs,
            per_device_train_batch_size=config.per_device_train_batch_size,
            per_device_eval_batch_size=2 * config.per_device_train_batch_size,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            learning_rate=config.learning_rate,
            warmup_steps=config.warmup_steps,
            weight_decay=config.weight_decay,
            lr_scheduler_type="linear",
            seed=seed,
            bf16=precision == "bf16",
            fp16=precision == "fp16",
            use_cpu=not has_accelerator(),
            train_sampling_strategy="group_by_length" if config.group_by_length else "random",
            eval_strategy="epoch",
            save_strategy="epoch",
            save_total_limit=1,
            save_only_model=True,  # a run of minutes is done again, not resumed
            load_best_model_at_end=True,
            metric_for_best_model="eval_validation_accuracy",
            greater_is_better=True,
            logging_strategy="epoch",
            logging_nan_inf_filter=False,
            disable_tqdm=True,  # `_Bar` takes its place
            report_to="none",
            remove_unused_columns=False,
            dataloader_pin_memory=has_accelerator(),
        )
    except ValueError as error:
        raise InputError(f"config: {error}") from error
    ensure(
        arguments.n_gpu <= 1,
        f"{arguments.n_gpu} GPUs: one fine-tuning uses one. Choose it with CUDA_VISIBLE_DEVICES=0.",
    )
    return arguments


def finetune(
    base: Base, data: dict[str, Encoded], config: ClassifyConfig, seed: int, folder: Path, meter: StageMeter
) -> dict[str, Any]:
    """Fine-tune with one seed and return its record; see the keys below.

    Args:
        base: the model.
        data: the rows of train, validation and test.
        config: how.
        seed: of the head (or of all weights) and of the order of the rows.
        folder: where checkpoints lie meanwhile.
        meter: measures energy.

    Raises:
        RunFailedError: the loss is not finite, or memory ran out.
    """
    checkpoints = folder / CHECKPOINTS
    start = time.monotonic()
    evaluated = ["validation", "test"] if config.select == CHOSEN_ON_TEST else ["validation"]
    num_labels = base.config.num_labels or 0
    avoid_cudnn_attention()

    def compute_metrics(prediction: "EvalPrediction") -> dict[str, float]:
        logits: Any = prediction.predictions
        return score(logits.argmax(-1), prediction.label_ids, num_labels)

    trainer = _OrderedTrainer(
        model=build_classifier(base, seed),
        args=training_arguments(config, checkpoints, seed),
        data_collator=DataCollatorWithPadding(base.tokenizer),
        train_dataset=_Rows(data["train"].rows),  # type: ignore[arg-type]
        eval_dataset={split: _Rows(data[split].rows) for split in evaluated},  # type: ignore[misc]
        processing_class=base.tokenizer,
        compute_metrics=compute_metrics,
        callbacks=[_EpochLines(seed, meter), *([_Bar()] if sys.stderr.isatty() else [])],
    )
    trainer.remove_callback(PrinterCallback)
    try:
        trainer.train()
        predicted = trainer.predict(_Rows(data["test"].rows))  # type: ignore[arg-type]
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise RunFailedError(
            f"memory ran out with rows of up to {data['train'].longest} tokens, "
            f"{config.per_device_train_batch_size} at once. Halve --per_device_train_batch_size and double "
            "--gradient_accumulation_steps, which computes the same."
        ) from error
    record = _record(trainer, predicted, seed, evaluated, num_labels)
    if config.save_model and seed == config.seed:
        _save(trainer, base, folder.parent / MODEL_FOLDER)
    shutil.rmtree(checkpoints)
    return {**record, "seconds": time.monotonic() - start}


def _record(trainer: Any, predicted: Any, seed: int, evaluated: list[str], num_labels: int) -> dict[str, Any]:
    history = trainer.state.log_history
    losses = [entry["loss"] for entry in history if "loss" in entry]
    if not all(map(math.isfinite, losses)):
        raise RunFailedError(f"seed {seed}: the loss is not finite. A lower --learning_rate usually cures it.")
    epochs = [{"epoch": number, "train_loss": loss} for number, loss in enumerate(losses, start=1)]
    for split in evaluated:
        found = [entry for entry in history if f"eval_{split}_accuracy" in entry]
        for epoch, entry in zip(epochs, found, strict=True):
            epoch[split] = {name: entry[f"eval_{split}_{name}"] for name in ("loss", "accuracy", "f1_macro")}
    best = max(epochs, key=lambda epoch: epoch["validation"]["accuracy"])  # the earliest of equals, as the Trainer's
    predictions = [int(label) for label in predicted.predictions.argmax(-1)]
    record = {
        "seed": seed,
        "epochs": epochs,
        "chosen_epoch": best["epoch"],
        "steps": trainer.state.global_step,
        "scores": score(predictions, predicted.label_ids, num_labels),
        "predictions": predictions,
    }
    if "test" in evaluated:
        flattering = max(epochs, key=lambda epoch: epoch["test"]["accuracy"])
        record["best_on_test"] = {"epoch": flattering["epoch"], **flattering["test"]}
    return record


def _save(trainer: Any, base: Base, folder: Path) -> None:
    trainer.save_model(str(folder))
    base.tokenizer.save_pretrained(folder)
    finish_saved(folder)
    with contextlib.suppress(FileNotFoundError):
        (folder / "training_args.bin").unlink()  # a pickle
