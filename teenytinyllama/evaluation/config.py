"""The config of `ttl evaluate`."""

from dataclasses import dataclass, field
from typing import Literal

from ..checks import ensure
from ..grid import GridSettings
from ..meter import check_energy
from .suites import LANGUAGE_MODELING, SUITE_CHOICES


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
