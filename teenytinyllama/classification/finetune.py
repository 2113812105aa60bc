"""Fine-tuning: a model gets a new head, reads the rows of a task as tokens, and is trained with one seed.

The Hugging Face Trainer scores the model after each epoch and keeps the best one.
"""

import contextlib
import copy
import math
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import SequentialSampler
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from ..checks import InputError, RunFailedError, ensure
from ..energy.recorder import StageMeter
from ..gpus import choose_precision, has_accelerator, has_pinned_memory, is_out_of_memory
from ..models import (
    avoid_cudnn_attention,
    finish_saved,
    load_classifier,
    load_config,
    load_tokenizer,
    resize_embeddings,
    weights_identity,
)
from ..progress import say
from ..stage_folder import sha256_json
from ..tokenizer.encode import encode_texts
from .config import CHOSEN_ON_TEST, MODEL_FOLDER, ClassifyConfig
from .labelled_rows import Example, score

if TYPE_CHECKING:
    from transformers import EvalPrediction, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

PAD_TOKEN = "<pad>"
LEAST_TEXT_TOKENS = 8


@dataclass(frozen=True)
class Base:
    """The model that is fine-tuned, before its weights are read.

    Attributes:
        name: folder or repository.
        revision: branch or commit, or None.
        tokenizer: with a padding token that no row can hold.
        config: the model's, with the labels.
        is_encoder: whether it reads in both directions (BERT and its kin) and its tokenizer joins pairs itself.
        context: most tokens of a row; None: no limit is known.
        random_init: whether the weights are drawn instead of read.
        identity: tells the weights (or, drawn, their shape) from others.
    """

    name: str
    revision: str | None
    tokenizer: "PreTrainedTokenizerBase"
    config: "PreTrainedConfig"
    is_encoder: bool
    context: int | None
    random_init: bool
    identity: str


def load_base(name: str, revision: str | None, labels: tuple[str, ...], random_init: bool) -> Base:
    """Return the config and tokenizer of a model that is to classify.

    Raises:
        InputError: no such model, one that cannot classify texts, without tokenizer, or without readable weights.
    """
    config = load_config("model_name_or_path", name, revision, classifier=True)
    tokenizer = load_tokenizer("model_name_or_path", name, revision)
    shape = sha256_json({key: str(value) for key, value in config.to_dict().items() if not key.startswith("_")})
    identity = f"random {shape}" if random_init else weights_identity(name, revision)
    give_pad_token(tokenizer)
    config.num_labels = len(labels)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: number for number, label in enumerate(labels)}
    config.problem_type = "single_label_classification"
    config.use_cache = False
    is_encoder = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return Base(name, revision, tokenizer, config, is_encoder, _context(config, tokenizer), random_init, identity)


def give_pad_token(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Make sure, in place, that padding is a token of its own, on the right.

    A decoder classifies at the last token that is no padding. If padding is the end token, as many recipes set it, the
    end of every row counts as padding and the model answers one token too early; if it is the unknown token, rows that
    end with an unknown word do so.
    """
    others = {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id} - {None}
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in others:
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    tokenizer.padding_side = "right"


def _context(config: Any, tokenizer: Any) -> int | None:
    """Return the largest number of tokens of a row that a model and its tokenizer take; None: no limit is known."""
    limits = [getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)]
    if config.model_type in ("roberta", "xlm-roberta", "camembert", "roberta-prelayernorm"):
        limits = [limit and limit - config.pad_token_id - 1 for limit in limits]  # positions begin behind padding
    if tokenizer.model_max_length < 1_000_000:  # else the library's way to say that it does not know
        limits.append(tokenizer.model_max_length)
    known = [int(limit) for limit in limits if limit]
    return min(known) if known else None


def build_classifier(base: Base, seed: int) -> "PreTrainedModel":
    """Return the model with a new head, and with padding where the tokenizer has it; all new weights follow `seed`."""
    config: Any = copy.deepcopy(base.config)
    pad = config.pad_token_id
    if pad is not None and not 0 <= pad < config.vocab_size:  # -1 in some Llamas: no row of the embeddings
        config.pad_token_id = None
    set_seed(seed)
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # it warns that the head is new, which is what is wanted
    transformers_logging.disable_progress_bar()
    try:
        if base.random_init:
            model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32, trust_remote_code=False)
        else:
            model, _ = load_classifier(base.name, base.revision, config)
        resize_embeddings(model, base.tokenizer)
    finally:
        transformers_logging.set_verbosity(before)
    # The model looks for the last token that differs from this one: another id than the rows are padded with, and it
    # would silently read the padding.
    model.config.pad_token_id = base.tokenizer.pad_token_id
    return model


@dataclass(frozen=True)
class Encoded:
    """The rows of a split as the Trainer takes them.

    Attributes:
        rows: `input_ids`, `attention_mask`, `labels` and, for an encoder that knows two segments, `token_type_ids`.
        truncated: how many rows were cut.
        longest: tokens of the longest row.
    """

    rows: list[dict[str, Any]]
    truncated: int
    longest: int


@dataclass(frozen=True)
class Framing:
    """The special tokens around the texts of a row.

    Attributes:
        has_pairs: whether rows are pairs of texts.
        start: ids in front of the first text.
        separator: ids between the texts of a pair.
        end: ids behind the last text.
        by_tokenizer: whether the tokenizer frames the row by its own rule, as those of encoders do; then the ids above
            are empty.
        num_special: tokens of a row that are no text.
    """

    has_pairs: bool
    start: list[int]
    separator: list[int]
    end: list[int]
    by_tokenizer: bool
    num_special: int


def frame(base: Base, has_pairs: bool, end_token: bool | None = None) -> Framing:
    """Return the special tokens around the texts of each row.

    Of a decoder as in the paper: `<s> text` and `<s> first <s> second </s>`. The head reads the last token: without an
    end token that is where the model would go on with the text; behind one, where it has only ever seen the next
    document begin. `end_token` says whether a decoder's rows end with one; None is the paper's way.

    Raises:
        InputError: a decoder whose tokenizer has neither a start nor an end token.
    """
    if base.is_encoder:
        special = int(base.tokenizer.num_special_tokens_to_add(pair=has_pairs))
        return Framing(has_pairs, [], [], [], True, special)
    start, end = base.tokenizer.bos_token_id, base.tokenizer.eos_token_id
    between = start if start is not None else end
    ensure(
        between is not None,
        f"model_name_or_path={base.name}: its tokenizer has neither a start nor an end token. Set bos_token or "
        "eos_token in its tokenizer_config.json.",
    )
    assert between is not None
    has_end = has_pairs if end_token is None else end_token
    separator, last = [between] if has_pairs else [], [end] if has_end and end is not None else []
    # Always something in front: a text without any token needs one that the head can read.
    return Framing(has_pairs, [between], separator, last, False, 1 + len(separator) + len(last))


def describe_framing(base: Base, framing: Framing) -> str:
    """Return how a row is put together, such as `<s> TEXT </s>`, for reports."""
    if framing.by_tokenizer:
        return f"{'pairs' if framing.has_pairs else 'texts'} framed by the tokenizer's own rule for encoders"
    start, separator, end = (base.tokenizer.decode(ids) for ids in (framing.start, framing.separator, framing.end))
    inside = f"TEXT {separator} PAIR" if framing.has_pairs else "TEXT"
    return " ".join(f"{start} {inside} {end}".split()) + " (the head reads the last token)"


def choose_length(base: Base, framing: Framing, given: int | None, usual: int | None) -> int:
    """Return the largest number of tokens of a row: the one given by the user, or else the paper's for this task.

    The paper's is cut to the model's context.

    Raises:
        InputError: more than the model's context, or so few that nearly no text is left.
    """
    ensure(
        given is None or base.context is None or given <= base.context,
        f"max_length={given}: longer than the context of {base.name}, which is {base.context} tokens. Use "
        f"{base.context} or less.",
    )
    known = [limit for limit in (given or usual, base.context) if limit]
    length = min(known) if known else 1 << 20
    needed = framing.num_special + LEAST_TEXT_TOKENS * (2 if framing.has_pairs else 1)
    ensure(
        length >= needed,
        f"max_length={length}: too few tokens for a row of this task, which needs {needed} at least. "
        + ("Raise it." if given else f"The context of {base.name} is too short: use another model."),
    )
    return length


def encode(base: Base, framing: Framing, examples: list[Example], max_length: int) -> Encoded:
    """Return the tokens of rows; of a pair the longer text is cut first, and what frames the texts is never cut.

    Special tokens typed in a text stay text.
    """
    texts = encode_texts(base.tokenizer, [example.text for example in examples])
    pairs = encode_texts(base.tokenizer, [example.pair for example in examples])
    room = max_length - framing.num_special
    truncated = sum(len(text) + len(pair) > room for text, pair in zip(texts, pairs, strict=True))
    if framing.by_tokenizer:
        encoded = base.tokenizer(
            [example.text for example in examples],
            [example.pair for example in examples] if framing.has_pairs else None,
            truncation="longest_first",
            max_length=max_length,
            split_special_tokens=True,
        )
        rows: list[dict[str, Any]] = [{name: encoded[name][index] for name in encoded} for index in range(len(texts))]
    else:
        cut = [cut_pair(text, pair, room) for text, pair in zip(texts, pairs, strict=True)]
        ids = [[*framing.start, *text, *framing.separator, *pair, *framing.end] for text, pair in cut]
        rows = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in ids]
    for row, example in zip(rows, examples, strict=True):
        row["labels"] = example.label
    return Encoded(rows, truncated, max(len(row["input_ids"]) for row in rows))


def cut_pair(text: list[int], pair: list[int], room: int) -> tuple[list[int], list[int]]:
    """Return both texts cut to `room` tokens together, the longer one first."""
    if len(text) + len(pair) <= room:
        return text, pair
    keep = max(room - min(len(text), len(pair)), (room + 1) // 2)  # of the longer one
    if len(text) >= len(pair):
        return text[:keep], pair[: room - min(keep, len(text))]
    return text[: room - min(keep, len(pair))], pair[:keep]


class _Bar(ProgressCallback):
    """The Trainer's progress bar without its lines of raw logs."""

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        """Write nothing: `_EpochLines` prints the lines."""


class _EpochLines(TrainerCallback):
    """Prints what each epoch scored, and lets the energy meter write now and then."""

    def __init__(self, seed: int, meter: StageMeter) -> None:
        self.seed, self.meter = seed, meter

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Let the energy meter write, if its last row is old."""
        self.meter.tick()

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any = None, **kwargs: Any
    ) -> None:
        """Print the scores of the epoch in one line."""
        found = metrics or {}
        for split in ("validation", "test"):
            if f"eval_{split}_accuracy" in found:
                say(
                    f"seed {self.seed}, epoch {round(state.epoch or 0)}: {split} accuracy "
                    f"{found[f'eval_{split}_accuracy']:.4f}, macro-F1 {found[f'eval_{split}_f1_macro']:.4f}"
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
    shared = ("num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate",
              "warmup_steps", "weight_decay")  # fmt: skip
    try:
        arguments = TrainingArguments(
            **{name: getattr(config, name) for name in shared},
            output_dir=str(folder),
            per_device_eval_batch_size=2 * config.per_device_train_batch_size,
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
            dataloader_pin_memory=has_pinned_memory(),
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
    """Fine-tune with one seed and return its record, the content of `seed-N.json`.

    Checkpoints lie in `folder` meanwhile. The seed decides the head (or all weights) and the order of the rows.

    Raises:
        RunFailedError: the loss is not finite, or memory ran out.
    """
    checkpoints = folder / "checkpoints"
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
        train_dataset=data["train"].rows,  # type: ignore[arg-type]  # a list is a map-style dataset
        eval_dataset={split: data[split].rows for split in evaluated},  # type: ignore[misc]
        processing_class=base.tokenizer,
        compute_metrics=compute_metrics,
        callbacks=[_EpochLines(seed, meter), *([_Bar()] if sys.stderr.isatty() else [])],
    )
    trainer.remove_callback(PrinterCallback)
    try:
        trainer.train()
        predicted = trainer.predict(data["test"].rows)  # type: ignore[arg-type]
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
    """Return the record of a seed: its epochs, the chosen one, and the scores and predictions on the test rows."""
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
    """Save the classifier of the chosen epoch as a plain model of transformers, with its tokenizer."""
    trainer.save_model(str(folder))
    base.tokenizer.save_pretrained(folder)
    finish_saved(folder)
    with contextlib.suppress(FileNotFoundError):
        (folder / "training_args.bin").unlink()  # a pickle
