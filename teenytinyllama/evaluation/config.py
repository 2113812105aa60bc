"""The config of `ttl evaluate`.

Which tasks there are, what they are called, what is asked of them, and which suites they belong to.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..checks import InputError, ensure, near_name
from ..energy.emissions import GridSettings
from ..energy.meter import check_energy

TASKS_FOLDER = Path(__file__).parent / "tasks"
PREFIX = "ttl_"
TaskKind = Literal["choices", "truth", "word", "labels", "exam", "similarity"]


@dataclass(frozen=True)
class BenchmarkTask:
    """One task of the harness.

    Attributes:
        name: in the harness; the YAML in `TASKS_FOLDER` has the same.
        title: as it is shown.
        source: its rows, in `sources.SOURCES`.
        kind: how it is answered: a choice by likelihood (`choices`; `truth` with several right ones), the last word
            of a text, and in writing: a label, an exam's letter, a number.
        metric: the one that counts.
        metric_title: as it is shown.
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
SUITE_CHOICES = (LANGUAGE_MODELING, *SUITES, "all")


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
    suite: Literal["lm", "paper", "leaderboard", "signal", "all"] | None = field(
        default=None,
        metadata={"help": "lm: bits per byte of held-out text; paper: ARC, HellaSwag, MMLU, TruthfulQA; leaderboard: "
                          "nine Portuguese tasks; signal: cheap ones that follow training. Default signal"},
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
    checkpoints: bool = field(
        default=False,
        metadata={"help": "also every checkpoint of a run, or every branch step… of a repository"},
    )
    revision: str | None = field(default=None, metadata={"help": "branch, tag or commit of a Hub repository"})
    base_model: str | None = field(
        default=None, metadata={"help": "for an adapter: its base model, if it is not where it was"}
    )
    output_dir: str | None = field(
        default=None, metadata={"help": "folder for the results; default `evaluation` in the model's folder"}
    )

    def __post_init__(self) -> None:
        """Refuse values that make no sense, before anything is loaded.

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
        for key in ("limit", "batch_size", "cloze_items", "held_out_max_tokens", "context"):
            value = getattr(self, key)
            ensure(value is None or value >= 1, f"{key}={value}: must be at least 1.")
        ensure(
            not (self.checkpoints and self.revision),
            f"checkpoints, revision={self.revision}: give one of the two.",
        )
        check_energy(self)

    @property
    def wants_language_modeling(self) -> bool:
        """Return whether the suite `lm` is asked for."""
        return self.suite in (LANGUAGE_MODELING, "all")
