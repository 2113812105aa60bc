"""Which tasks there are, what they are called, what is asked of them, and which suites they belong to."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..checks import InputError, near_name

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
