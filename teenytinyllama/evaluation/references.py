"""Scores of other models that ship as data, each with its source."""

from pathlib import Path
from typing import Any

from ..arguments import load_yaml
from ..checks import ensure
from .results import Score, is_limited
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
                          metric_name=task.metric_title, value=value / 100, source=group["source"],
                          num_items=group["items"][name], questions_sha256=group.get("questions", {}).get(name))
                )  # fmt: skip
    return models


def why_not_comparable(score: Score, reference: Score) -> str | None:
    """Return why a published score is of other questions than a score, or None if it is of the same.

    They are the same if their texts are, or, of a dataset whose texts are not known here, if there are as many.
    """
    if is_limited(score):
        return f"only the first {score.num_items:,} of {score.total_items:,} questions were asked"
    if score.num_items != reference.num_items:
        return f"{score.num_items:,} questions were asked, and the published scores are of {reference.num_items:,}"
    known = (reference.questions_sha256, score.questions_sha256)
    if score.dataset_id is None and None not in known and known[0] != known[1]:
        return "as many questions were asked as in the published scores, but others"
    return None
