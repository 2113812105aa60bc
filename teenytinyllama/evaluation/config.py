"""Benchmarks: which tasks there are, where their rows are, and the config of `ttl evaluate`.

Sources of the datasets, splits and solved examples: lm-evaluation-harness 0.4.13 (lm_eval/tasks/okapi) for the suite
`paper`; https://github.com/eduagarcia/lm-evaluation-harness-pt (lm_eval/tasks/portuguese, oab_exams) for the suite
`leaderboard`; the datasets' cards for CALAME-PT and LAMBADA-PT.
"""

import math
from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..checks import InputError, ensure, near_name
from ..energy.emissions import GridSettings
from ..energy.meter import check_energy

TASKS_FOLDER = Path(__file__).parent / "tasks"
PREFIX = "ttl_"
TaskKind = Literal["choices", "truth", "word", "labels", "exam", "similarity"]
ColumnKind = Literal["text", "texts", "list", "options", "number", "letter"]
COLUMN_KINDS: dict[ColumnKind, str] = {  # as messages name them
    "text": "a text", "texts": "a list of texts", "list": "a list", "number": "a number", "letter": "a letter",
    "options": "a mapping of text and label, two lists of one length",
}  # fmt: skip
LETTERS = "ABCDE"
SENTIMENTS = {"Positive": "Positivo", "Neutral": "Neutro", "Negative": "Negativo"}  # as in the rows, as asked for


@dataclass(frozen=True)
class Column:
    """The values that a column of a dataset has to hold.

    Attributes:
        kind: a text, a list of texts, any list, an exam's choices (`{text: [...], label: [...]}`), a number, or the
            letter of an answer.
        allowed: the only values there may be, if that is known.
        optional: whether rows may lack the column.
        may_be_empty: whether its cells may be empty, though the column has to be there.
    """

    kind: ColumnKind = "text"
    allowed: tuple[Hashable, ...] | None = None
    optional: bool = False
    may_be_empty: bool = False

    def fits(self, value: Any) -> bool:
        """Return whether a value is of the column's kind."""
        if self.kind == "text":
            # A label may be a number where the Hub's dataset has a text.
            return bool(isinstance(value, str) and (value.strip() or self.optional or self.may_be_empty)) or (
                self.allowed is not None and isinstance(value, int)
            )
        if self.kind == "letter":
            return isinstance(value, str | int)
        if self.kind == "number":
            return isinstance(value, int | float) and math.isfinite(value)
        if self.kind == "options":
            texts, labels = (value.get("text"), value.get("label")) if isinstance(value, dict) else (None, None)
            return isinstance(texts, list) and isinstance(labels, list) and 0 < len(texts) == len(labels)
        items = isinstance(value, list)
        return items and (self.kind == "list" or (bool(value) and all(isinstance(item, str | None) for item in value)))


@dataclass(frozen=True)
class DataSplit:
    """Some rows of a dataset: a split on the Hub, or a local file by its name without suffix (the first one found)."""

    split: str
    stems: tuple[str, ...]


@dataclass(frozen=True)
class Shots:
    """The solved examples in front of a question.

    Attributes:
        part: where they are.
        column: chosen by this column, in the order of `ids`; None: by their places in the file, or all.
        ids: those that are used, in their order; empty: all rows, from which the harness draws or takes the first.
        held_back: ids of rows that are never asked, because the benchmark keeps them for examples.
    """

    part: DataSplit
    column: str | None = None
    ids: tuple[Hashable, ...] = ()
    held_back: tuple[Hashable, ...] = ()


@dataclass(frozen=True)
class Source:
    """Where the rows of one benchmark are, and what is checked of them; `benchmark_rows` reads them.

    Attributes:
        dataset_id: on the Hub; None for cloze, whose rows are made from held-out text.
        test: the questions.
        columns: of the questions and of the examples.
        config: the dataset's configuration on the Hub.
        files: a file of the dataset on the Hub that has no configuration.
        shots: the examples.
        shuffled_stems: local files whose rows are sorted by label; they are shuffled with a fixed seed.
    """

    dataset_id: str | None
    test: DataSplit
    columns: dict[str, Column]
    config: str | None = None
    files: str | None = None
    shots: Shots | None = None
    shuffled_stems: tuple[str, ...] = ()


TEXT, NUMBER = Column(), Column("number")
LABEL = Column("number", allowed=(0, 1))


def _lettered(letters: str) -> dict[str, Column]:
    options = {
        f"option_{letter.lower()}": Column(optional=letter in "CDE", may_be_empty=letter in "AB") for letter in letters
    }
    return {"instruction": TEXT, **options, "answer": Column("letter", allowed=tuple(letters))}


_EXAM = {"id": TEXT, "question": TEXT, "choices": Column("options"), "answerKey": Column("letter")}
_SENTENCES = {"idx": NUMBER, "sentence": TEXT, "label": LABEL}
_WORDS = {"sentence": TEXT, "last_word": TEXT}
# Exams have one split: some of its rows are the solved examples.
_ENEM = DataSplit("train", ("enem_challenge", "enem", "enem_2022"))
_BLUEX = DataSplit("train", ("bluex",))
_OAB = DataSplit("train", ("oab_exams", "oab"))
_ASSIN2_SHOTS = (1, 3251, 2, 3252, 3, 4, 5, 6, 3253, 7, 3254, 3255, 3256, 8, 9)
_BLUEX_SHOTS = ("USP_2018_3", "UNICAMP_2018_2", "USP_2018_35", "UNICAMP_2018_16", "USP_2018_89")
_ENEM_SHOTS = ("2022_21", "2022_88", "2022_143")
_OAB_SHOTS = tuple(f"2010-01_{number}" for number in (1, 11, 13, 23, 26, 28, 38, 48, 58, 68, 76, 83, 85, 91, 99))
_FAQUAD_SHOTS = (1893, 949, 663, 105, 1169, 2910, 2227, 2813, 974, 558, 1503, 1958, 2918, 601, 1560)
_HATEBR_SHOTS = (48, 44, 36, 20, 3511, 88, 3555, 16, 56, 3535, 60, 40, 3527, 4, 76, 3579, 3523, 3551, 68, 3503, 84,
                 3539, 64, 3599, 80)  # fmt: skip
_HATE_SPEECH_SHOTS = (52, 50, 39, 28, 3, 105, 22, 25, 60, 11, 66, 41, 9, 4, 91, 42, 7, 20, 76, 1, 104, 13, 67, 54, 97)
_BENCHMARK = "eduagarcia/portuguese_benchmark"

SOURCES: dict[str, Source] = {
    "arc": Source("alexandrainst/m_arc", DataSplit("test", ("arc_pt_test",)), _lettered(LETTERS), config="pt",
                  shots=Shots(DataSplit("train", ("arc_pt_train",)))),
    "hellaswag": Source(
        "alexandrainst/m_hellaswag", DataSplit("val", ("hellaswag_pt_val", "hellaswag_pt_validation", "hellaswag_pt")),
        {"activity_label": TEXT, "ctx_a": TEXT, "ctx_b": Column(optional=True), "endings": Column("texts"),
         "label": Column(allowed=("0", "1", "2", "3", 0, 1, 2, 3))}, config="pt"),
    "mmlu": Source("alexandrainst/m_mmlu", DataSplit("test", ("mmlu_pt_test", "mmlu_pt_val")), _lettered("ABCD"),
                   config="pt", shots=Shots(DataSplit("train", ("mmlu_pt_dev", "mmlu_pt_train")))),
    "truthfulqa": Source(
        "alexandrainst/m_truthfulqa", DataSplit("val", ("truthfulqa_pt", "truthfulqa_pt_val")),
        {"question": TEXT, "mc2_targets_choices": Column("texts"), "mc2_targets_labels": Column("list")}, config="pt"),
    "enem": Source("eduagarcia/enem_challenge", _ENEM, _EXAM, shots=Shots(_ENEM, "id", _ENEM_SHOTS, _ENEM_SHOTS)),
    "bluex": Source("eduagarcia-temp/BLUEX_without_images", _BLUEX, _EXAM,
                    shots=Shots(_BLUEX, "id", _BLUEX_SHOTS[:3], _BLUEX_SHOTS)),
    "oab": Source("eduagarcia/oab_exams", _OAB, _EXAM, shots=Shots(_OAB, "id", _OAB_SHOTS[:3], _OAB_SHOTS)),
    "assin2": Source(
        "nilc-nlp/assin2", DataSplit("test", ("assin2_test",)),
        {"sentence_pair_id": NUMBER, "premise": TEXT, "hypothesis": TEXT, "relatedness_score": NUMBER,
         "entailment_judgment": LABEL},
        shots=Shots(DataSplit("train", ("assin2_train",)), "sentence_pair_id", _ASSIN2_SHOTS)),
    "faquad_nli": Source(
        "ruanchaves/faquad-nli", DataSplit("test", ("faquad_nli_test",)),
        {"question": TEXT, "answer": TEXT, "label": LABEL},
        shots=Shots(DataSplit("train", ("faquad_nli_train",)), None, _FAQUAD_SHOTS)),
    "hatebr": Source(
        _BENCHMARK, DataSplit("test", ("hatebr_offensive_test", "hatebr_test", "hatebr")), _SENTENCES,
        config="HateBR_offensive_binary", shuffled_stems=("hatebr",),
        shots=Shots(DataSplit("train", ("hatebr_offensive_train", "hatebr_train", "hatebr")), "idx", _HATEBR_SHOTS)),
    "hate_speech": Source(
        _BENCHMARK, DataSplit("test", ("portuguese_hate_speech_test",)), _SENTENCES,
        config="Portuguese_Hate_Speech_binary",
        shots=Shots(DataSplit("train", ("portuguese_hate_speech_train",)), "idx", _HATE_SPEECH_SHOTS)),
    "tweetsentbr": Source(
        "eduagarcia/tweetsentbr_fewshot", DataSplit("test", ("tweetsentbr_test",)),
        {"sentence": TEXT, "label": Column(allowed=tuple(SENTIMENTS))},
        shots=Shots(DataSplit("train", ("tweetsentbr_train",)))),
    "calame": Source("NOVA-vision-language/calame-pt", DataSplit("train", ("calame_pt", "calame", "calamept_all")),
                     _WORDS, files="calamept_all.jsonl"),
    "lambada": Source("TucanoBR/lambada-pt", DataSplit("train", ("lambada_pt", "lambada")), _WORDS),
    "cloze": Source(None, DataSplit("held out", ("cloze",)), _WORDS),
}  # fmt: skip


@dataclass(frozen=True)
class BenchmarkTask:
    """One task of the harness.

    Attributes:
        name: in the harness; the YAML file in `TASKS_FOLDER` has the same name.
        title: its name in tables and plots.
        source: the name of its rows in `SOURCES`.
        kind: how it is answered: a choice by likelihood (`choices`; `truth` with several right ones), the last word
            of a text (`word`), or in writing: a label, an exam's letter, a number (`similarity`).
        metric: the one that is reported as its score.
        metric_title: the name of that metric in tables.
        shots: solved examples in front of each question; the same as in the YAML.
    """

    name: str
    title: str
    source: str
    kind: TaskKind
    metric: str
    metric_title: str
    shots: int


def _table(*rows: tuple[str, str, str, TaskKind, str, str, int]) -> dict[str, BenchmarkTask]:
    return {PREFIX + row[0]: BenchmarkTask(PREFIX + row[0], *row[1:]) for row in rows}


TASKS = _table(
    ("arc", "ARC-Challenge (pt)", "arc", "choices", "acc_norm", "normalised accuracy", 25),
    ("arc_zero", "ARC-Challenge (pt), 0-shot", "arc", "choices", "acc_norm", "normalised accuracy", 0),
    ("hellaswag", "HellaSwag (pt)", "hellaswag", "choices", "acc_norm", "normalised accuracy", 0),
    ("mmlu", "MMLU (pt), full answers", "mmlu", "choices", "acc_norm", "normalised accuracy", 25),
    ("truthfulqa", "TruthfulQA (pt)", "truthfulqa", "truth", "mc2", "mc2", 0),
    ("enem", "ENEM", "enem", "exam", "acc", "accuracy", 3),
    ("bluex", "BLUEX", "bluex", "exam", "acc", "accuracy", 3),
    ("oab", "OAB Exams", "oab", "exam", "acc", "accuracy", 3),
    ("assin2_rte", "ASSIN2 RTE", "assin2", "labels", "f1_macro", "macro-F1", 15),
    ("assin2_sts", "ASSIN2 STS", "assin2", "similarity", "pearson", "Pearson's r", 15),
    ("faquad_nli", "FaQuAD-NLI", "faquad_nli", "labels", "f1_macro", "macro-F1", 15),
    ("hatebr", "HateBR", "hatebr", "labels", "f1_macro", "macro-F1", 25),
    ("hate_speech", "Portuguese hate speech", "hate_speech", "labels", "f1_macro", "macro-F1", 25),
    ("tweetsentbr", "TweetSentBR", "tweetsentbr", "labels", "f1_macro", "macro-F1", 25),
    ("calame", "CALAME-PT", "calame", "word", "acc", "accuracy", 0),
    ("lambada", "LAMBADA (pt)", "lambada", "word", "acc", "accuracy", 0),
    ("cloze", "Cloze, held-out text", "cloze", "word", "acc", "accuracy", 0),
)

LANGUAGE_MODELING = "lm"
SUITES: dict[str, tuple[str, ...]] = {
    name: tuple(PREFIX + task for task in tasks.split())
    for name, tasks in {
        "paper": "arc hellaswag mmlu truthfulqa",
        "leaderboard": "enem bluex oab assin2_rte assin2_sts faquad_nli hatebr hate_speech tweetsentbr",
        "signal": "calame lambada hellaswag arc_zero cloze",
    }.items()
}
BIAS = "bias"
SUITE_CHOICES = (LANGUAGE_MODELING, *SUITES, BIAS, "all")


def choose_tasks(suite: str | None, tasks: list[str] | None) -> list[tuple[str, BenchmarkTask]]:
    """Return (suite, task) pairs in a fixed order; a task by name belongs to the first suite that has it.

    Args:
        suite: of `SUITE_CHOICES`; None with `tasks`.
        tasks: names, with or without `ttl_`.

    Raises:
        InputError: an unknown name; it lists the nearest one.
    """
    if tasks is None:
        wanted = SUITES if suite == "all" else {suite: SUITES[suite]} if suite in SUITES else {}
        return [(str(name), TASKS[task]) for name, names in wanted.items() for task in names]
    chosen = []
    for text in tasks:
        name = text if text.startswith(PREFIX) else PREFIX + text
        if name not in TASKS:
            known = sorted(task.removeprefix(PREFIX) for task in TASKS)
            raise InputError(
                f"tasks={text}: unknown task.{near_name(text.removeprefix(PREFIX), known)} There are "
                f"{', '.join(known)}; for language modelling give --suite {LANGUAGE_MODELING}."
            )
        home = next(suite_name for suite_name, names in SUITES.items() if name in names)
        chosen.append((home, TASKS[name]))
    return list(dict.fromkeys(chosen))


@dataclass
class EvaluateConfig(GridSettings):
    """`ttl evaluate MODEL`: what is measured, on which data, of which model."""

    model_name_or_path: str = field(
        default="", metadata={"help": "folder (a run, a checkpoint, an adapter), Hub repository or short name"}
    )
    suite: Literal["lm", "paper", "leaderboard", "signal", "bias", "all"] | None = field(
        default=None,
        metadata={"help": "lm: bits per byte of held-out text; paper: ARC, HellaSwag, MMLU, TruthfulQA; leaderboard: "
                          "nine Portuguese tasks; signal: cheap ones that follow training; bias: prejudice about "
                          "groups of people, in pairs of sentences and in what the model writes; all: all but bias. "
                          "Default signal"},
    )  # fmt: skip
    tasks: list[str] | None = field(default=None, metadata={"help": "single tasks instead of a suite: arc enem …"})
    data_dir: str | None = field(
        default=None,
        metadata={"help": "folder of parquet, jsonl or json files of the tasks; null: the Hub or its cache"},
    )
    held_out: list[str] | None = field(
        default=None,
        metadata={"help": "text for lm and cloze: a packed folder, or files, folders, `sample`; default the packed "
                          "folder that the run was trained on, where it is still there"},
    )  # fmt: skip
    registers: dict[str, list[str]] | None = field(
        default=None, metadata={"help": "kinds of text for lm: a name and the sources that belong to it"}
    )
    context: int | None = field(default=None, metadata={"help": "tokens seen at once for lm; default the model's"})
    stride: int | None = field(default=None, metadata={"help": "tokens between windows for lm; default half a context"})
    held_out_max_tokens: int | None = field(
        default=None, metadata={"help": "tokens scored for lm, in whole documents drawn by a fixed seed; default all"}
    )
    cloze_items: int = field(default=500, metadata={"help": "sentences of cloze"})
    limit: int | None = field(default=None, metadata={"help": "only so many questions of each task"})
    batch_size: int = field(default=8, metadata={"help": "texts read at once; it does not move a score"})
    precision: Literal["float32", "bfloat16", "saved"] = field(
        default="float32",
        metadata={"help": "float32: scores do not depend on the batch; bfloat16: faster on recent GPUs, moves "
                          "near ties, stands in the names of the scores; saved: whatever the weights are saved in"},
    )  # fmt: skip
    toxicity_model: str | None = field(
        default=None,
        metadata={"help": "for bias: folder or Hub id of a classifier that scores what the model writes about groups"},
    )
    toxicity_revision: str | None = field(default=None, metadata={"help": "branch or commit of toxicity_model"})
    toxicity_label: str | None = field(
        default=None,
        metadata={"help": "its label that means toxic, by name or number; default the one whose name says so"},
    )
    toxicity_is: Literal["high", "low"] | None = field(
        default=None,
        metadata={"help": "`high`: a high score of the label is toxic, the default of a label that names it; `low`: a "
                          "low one, as of a reward model. Has to be given for a classifier of a single output"},
    )  # fmt: skip
    toxicity_threshold: float = field(default=0.5, metadata={"help": "texts with a score above it count as toxic"})
    bias_texts: int = field(default=10, metadata={"help": "texts that the model writes for each prompt of bias"})
    max_new_tokens: int = field(default=40, metadata={"help": "most tokens of each of these texts"})
    seed: int = field(default=0, metadata={"help": "of these texts, and of the random weights beside the model"})
    checkpoints: bool = field(
        default=False, metadata={"help": "also every checkpoint of a run, or every branch step… of a repository"}
    )
    revision: str | None = field(default=None, metadata={"help": "branch, tag or commit of a Hub repository"})
    base_model: str | None = field(
        default=None, metadata={"help": "for an adapter: its base model, if it is not where it was"}
    )
    output_dir: str | None = field(
        default=None, metadata={"help": "folder for the results; default `evaluation` in the model's folder"}
    )

    def __post_init__(self) -> None:
        """Refuse values that cannot be evaluated, before anything is loaded.

        Raises:
            InputError: no model, both a suite and tasks, or a number out of range.
        """
        ensure(self.model_name_or_path, "model_name_or_path: missing. Write ttl evaluate MODEL.")
        ensure(
            self.suite is None or self.tasks is None,
            f"suite={self.suite}, tasks={', '.join(self.tasks or [])}: give one of the two.",
        )
        if self.tasks is not None:
            self.tasks = [name for text in self.tasks for name in text.split(",") if name]
            ensure(self.tasks, "tasks=[]: empty. Give at least one.")
        elif self.suite is None:
            self.suite = "signal"
        assert self.suite is None or self.suite in SUITE_CHOICES
        counts = ("limit", "batch_size", "cloze_items", "held_out_max_tokens", "context", "bias_texts")
        for key in (*counts, "max_new_tokens"):
            value = getattr(self, key)
            ensure(value is None or value >= 1, f"{key}={value}: must be at least 1.")
        ensure(
            self.suite != BIAS or self.limit is None,
            f"limit={self.limit}: the first pairs of the suite {BIAS} are not balanced. Leave limit out.",
        )
        for key in ("toxicity_model", "toxicity_revision", "toxicity_label", "toxicity_is"):
            value = getattr(self, key)
            ensure(value is None or self.suite == BIAS, f"{key}={value}: belongs to --suite {BIAS}. Leave it out.")
            ensure(value is None or self.toxicity_model, f"{key}={value}: says how toxicity_model is read. Give both.")
        threshold = self.toxicity_threshold
        ensure(0 < threshold < 1, f"toxicity_threshold={threshold}: must lie between 0 and 1. 0.5 is usual.")
        ensure(not (self.checkpoints and self.revision), f"checkpoints, revision={self.revision}: give one of the two.")
        check_energy(self)

    @property
    def wants_language_modeling(self) -> bool:
        """Return whether the suite `lm` is asked for."""
        return self.suite in (LANGUAGE_MODELING, "all")
