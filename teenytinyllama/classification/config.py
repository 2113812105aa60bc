"""The config and the tasks of `ttl classify`.

A task says where its rows are, which columns and labels they have, and which scores were published for it.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..checks import InputError, ensure, near_name
from ..energy.emissions import GridSettings

LOCAL = "local"
# The Hub keeps a parquet copy of every dataset under this revision, as <config>/<split>/0000.parquet, also of those
# that are made by a script, which nobody should have to run.
PARQUET_REVISION = "refs/convert/parquet"
PAPER = "TeenyTinyLlama, arXiv 2401.16640, Table 5"
# A model's figures in that table by task: accuracy on the test set at the epoch that was best on the test set.
# Source: the "Fine-Tuning Comparisons" of the model cards in Nkluge-correa/TeenyTinyLlama (commit 8d3ae2d8).
_PAPER_TASKS = ("imdb_pt", "faquad_nli", "hatebr", "assin2", "agnews_pt")
_PAPER_ACCURACY = {
    "BERTimbau-large": (0.9358, 0.9226, 0.9157, 0.8897, 0.9411),
    "BERTimbau-base": (0.9222, 0.9307, 0.9128, 0.8745, 0.9419),  # "small" there
    "TTL-460m": (0.9164, 0.9118, 0.9228, 0.8643, 0.9442),
    "TTL-160m": (0.9114, 0.9000, 0.9071, 0.8578, 0.9405),
}


@dataclass(frozen=True)
class Task:
    """A classification of texts or of pairs of texts.

    Attributes:
        name: by which it is asked for on the command line.
        title: its name in tables and reports.
        dataset_id: on the Hub; empty for local files.
        text_columns: joined by an empty line where there are several.
        pair_column: the second text; empty for single texts.
        label_column: holds numbers from 0, booleans or the names of `labels`.
        labels: names in the order of their numbers; empty: those of the training rows.
        dataset_config: its configuration on the Hub; empty for the only one.
        max_length: tokens to which the paper cuts this task; None for the model's context.
        hub_splits: splits on the Hub; one that is missing is cut from `train`, see `labelled_rows.CUT_RULE`.
    """

    name: str
    title: str
    dataset_id: str
    text_columns: tuple[str, ...]
    label_column: str
    labels: tuple[str, ...] = ()
    pair_column: str = ""
    dataset_config: str = ""
    max_length: int | None = None
    hub_splits: tuple[str, ...] = field(default=("train", "validation", "test"))

    @property
    def paper(self) -> dict[str, float]:
        """Return the paper's accuracy of each model, a fraction; empty where the paper has none."""
        if self.name not in _PAPER_TASKS:
            return {}
        place = _PAPER_TASKS.index(self.name)
        return {model: figures[place] for model, figures in _PAPER_ACCURACY.items()}


# Datasets, columns, order of labels and the cut at 256 tokens: the training scripts in the model cards named above;
# SIB-200 (arXiv 2309.07445) is not in the paper. Labels are named here, in Portuguese.
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("imdb_pt", "IMDB-pt", "christykoh/imdb_pt", ("text",), "label", ("negativo", "positivo"), max_length=256,
             hub_splits=("train", "test")),
        Task("faquad_nli", "FaQuAD-NLI", "ruanchaves/faquad-nli", ("question",), "label", ("inadequada", "adequada"),
             pair_column="answer"),
        Task("hatebr", "HateBR", "ruanchaves/hatebr", ("instagram_comments",), "offensive_language",
             ("não ofensivo", "ofensivo")),
        Task("assin2", "ASSIN2 RTE", "nilc-nlp/assin2", ("premise",), "entailment_judgment",
             ("sem acarretamento", "acarretamento"), pair_column="hypothesis"),
        Task("agnews_pt", "AgNews-pt", "maritaca-ai/ag_news_pt", ("title", "text"), "label",
             ("mundo", "esportes", "negócios", "tecnologia"), max_length=256, hub_splits=("train", "test")),
        Task("sib200", "SIB-200 (por_Latn)", "Davlan/sib200", ("text",), "category",
             ("science/technology", "travel", "politics", "sports", "health", "entertainment", "geography"),
             dataset_config="por_Latn"),
        Task(LOCAL, "local files", "", ("text",), "label", hub_splits=()),
    )
}  # fmt: skip


def find_task(name: str) -> Task:
    """Return the task of a name.

    Raises:
        InputError: there is none.
    """
    if name not in TASKS:
        raise InputError(
            f"task={name}: unknown task.{near_name(name, TASKS)} Known are {', '.join(TASKS)}; `{LOCAL}` takes files "
            "of your own with --train_file."
        )
    return TASKS[name]


SPLITS = ("train", "validation", "test")
CHOSEN_ON_TEST = "test_as_in_the_paper"
MODEL_FOLDER = "model"  # of the classifier that `save_model` keeps, inside the folder of the results


@dataclass
class ClassifyConfig(GridSettings):
    """`ttl classify TASK MODEL`: which task, which model, how it is fine-tuned and how often."""

    task: str = field(metadata={"help": "imdb_pt, faquad_nli, hatebr, assin2, agnews_pt, sib200, or local (own files)"})
    model_name_or_path: str = field(metadata={"help": "base model: a folder or a Hub id; a decoder or an encoder"})
    model_revision: str | None = field(default=None, metadata={"help": "branch or commit of the model"})
    output_dir: str | None = field(
        default=None, metadata={"help": "folder of the results; default: outputs/classify/TASK/MODEL"}
    )
    data_dir: str | None = field(
        default=None,
        metadata={"help": "folder with the rows instead of the Hub: files named train…, validation… (or dev…), test…"},
    )
    train_file: list[str] | None = field(
        default=None, metadata={"help": "files to train on instead of the Hub's: parquet, jsonl, json, csv, tsv"}
    )
    validation_file: list[str] | None = field(
        default=None, metadata={"help": "files to choose the epoch on; default: cut from the training rows"}
    )
    test_file: list[str] | None = field(
        default=None, metadata={"help": "files to score; default: cut from the training rows"}
    )
    dataset_revision: str | None = field(
        default=None,
        metadata={"help": "commit of the Hub dataset's parquet copy; default: the newest, which is recorded"},
    )
    text_column: list[str] | None = field(
        default=None, metadata={"help": "column of the text; several are joined by an empty line; default: the task's"}
    )
    pair_column: str | None = field(default=None, metadata={"help": "column of the second text; default: the task's"})
    label_column: str | None = field(default=None, metadata={"help": "column of the label; default: the task's"})
    seeds: int = field(default=3, metadata={"help": "how many fine-tunings, with seed, seed + 1, …"})
    seed: int = field(default=42, metadata={"help": "of the first: decides the new head and the order of the rows"})
    select: Literal["validation", "test_as_in_the_paper"] = field(
        default="validation",
        metadata={
            "help": "what chooses the epoch that is scored; test_as_in_the_paper reports the best of all epochs on the "
            "test set as well, under a name that says so, because it flatters"
        },
    )
    random_init: bool = field(
        default=False,
        metadata={"help": "untrained weights of the same shape: what fine-tuning reaches without a model"},
    )
    # The paper's hyper-parameters (model cards of TeenyTinyLlama-160m-HateBR and others).
    num_train_epochs: int = field(default=3, metadata={"help": "passes over the training rows; each is evaluated"})
    per_device_train_batch_size: int = field(default=16, metadata={"help": "rows computed at once"})
    gradient_accumulation_steps: int = field(
        default=1, metadata={"help": "micro-batches a step, when 16 rows do not fit: --per_device_train_batch_size 4"}
    )
    learning_rate: float = field(default=4e-5, metadata={"help": "at the beginning; falls linearly to zero"})
    warmup_steps: float = field(default=0, metadata={"help": "steps in which the rate rises; below 1 a share"})
    weight_decay: float = field(default=0.01, metadata={"help": "of all weights but norms and biases"})
    max_length: int | None = field(
        default=None, metadata={"help": "tokens a row is cut to; default: the paper's, at most the model's context"}
    )
    end_token: bool | None = field(
        default=None,
        metadata={"help": "whether a decoder's rows end with the end token; default: pairs do and texts do not, as in "
                          "the paper"},
    )  # fmt: skip
    max_train_rows: int | None = field(
        default=None, metadata={"help": "train on so many rows, the same share of each label; default: on all"}
    )
    group_by_length: bool = field(
        default=True, metadata={"help": "put rows of similar length together, which saves padding; the paper does not"}
    )
    baseline: Literal["tfidf", "none"] = field(
        default="tfidf", metadata={"help": "also score word counts (TF-IDF) with logistic regression on the same rows"}
    )
    save_model: bool = field(default=False, metadata={"help": "keep the classifier of the first seed in model/"})

    def __post_init__(self) -> None:
        """Refuse values that cannot be run.

        Raises:
            InputError: an unknown task, files that are missing or too many, or a figure out of range.
        """
        task = find_task(self.task)
        ensure(self.model_name_or_path, "model_name_or_path: missing. Write `ttl classify TASK MODEL`.")
        for name, least in (("seeds", 1), ("num_train_epochs", 1), ("per_device_train_batch_size", 1),
                            ("gradient_accumulation_steps", 1), ("max_length", 8), ("max_train_rows", 2)):  # fmt: skip
            value = getattr(self, name)
            ensure(value is None or value >= least, f"{name}={value}: must be {least} or more.")
        ensure(0 < self.learning_rate < 1, f"learning_rate={self.learning_rate}: must lie between 0 and 1.")
        for name in ("weight_decay", "warmup_steps"):
            ensure(getattr(self, name) >= 0, f"{name}={getattr(self, name)}: must be 0 or more.")
        ensure(
            not (self.data_dir and self.local_files),
            f"data_dir={self.data_dir}: cannot stand beside files of single splits. Give the folder or the files.",
        )
        ensure(
            self.data_dir or not self.local_files or "train" in self.local_files,
            f"{next(iter(self.local_files), '')}_file: needs a train_file beside it; the Hub's rows would be others.",
        )
        ensure(
            self.is_local or task.name != LOCAL,
            f"task={LOCAL}: needs --train_file (and best --test_file), or --data_dir.",
        )
        ensure(
            not (self.is_local and self.dataset_revision),
            f"dataset_revision={self.dataset_revision}: only a Hub dataset has revisions. Leave it out.",
        )
        if not self.output_dir:
            model = Path(self.model_name_or_path).name or "model"
            self.output_dir = f"outputs/classify/{self.task}/{model}{'-random' if self.random_init else ''}"

    @property
    def local_files(self) -> dict[str, list[str]]:
        """Return the files given for each split."""
        files = {split: getattr(self, f"{split}_file") for split in SPLITS}
        return {split: names for split, names in files.items() if names}

    @property
    def is_local(self) -> bool:
        """Return whether the rows come from local files, and not from the Hub."""
        return bool(self.data_dir or self.local_files)
