"""Scores of other models that ship as data, each with its source."""

from pathlib import Path
from typing import Any

from ..arguments import load_yaml
from ..checks import ensure
from .results import Score
from .suites import TASKS

REFERENCES_PATH = Path(__file__).parent / "references.yaml"


def read_references(path: Path = REFERENCES_PATH) -> dict[str, list[Score]]:
    """Return the scores of each model, with their sources.

    Raises:
        InputError: an unknown task, or a list of scores of another length.
    """
    models: dict[str, list[Score]] = {}
    groups: Any = load_yaml(path.read_text(encoding="utf-8"), str(path))
    for group in groups:
        for model, values in group["scores"].items():
            ensure(
                len(values) == len(group["tasks"]),
                f"{path}: {model} has {len(values)} scores for {len(group['tasks'])} tasks ({group['source']}).",
            )
            for name, value in zip(group["tasks"], values, strict=True):
                ensure(name in TASKS, f"{path}: {name} is no task.")
                task = TASKS[name]
                models.setdefault(model, []).append(
                    Score(task=name, suite=group["suite"], name=task.title, metric=task.metric,
                          metric_name=task.metric_title, value=value / 100, source=group["source"])
                )  # fmt: skip
    return models
