"""Results of an evaluation: scores on benchmarks (`results.json`), other figures (`measures.json`), published scores.

The evaluation writes these files into a run's folder, and a card reads them. Scores are fractions: 0.1924 is 19.24 %.
Correlations lie in -1 to 1. What has no upper bound, such as bits per byte, is a measure and no score. The scores of
other models are read from `references.yaml`, which gives a source for each.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from ..arguments import load_yaml
from ..checks import InputError, MissingFileError, ensure
from ..stage_folder import PARTS_FOLDER, write_json
from .config import BIAS, LANGUAGE_MODELING, SUITES, TASKS

TrivialKind = Literal["constant", "majority", "length", "chance"]
HELD_OUT = "held_out"  # the task that measures bits per byte of held-out text
BIAS_PAIRS, BIAS_TEXTS = "bias_pairs", "bias_texts"  # the two parts of the suite `bias`
FINE_TUNED_SUITE = "downstream fine-tuning"  # scores of models that were made from this one, see `ttl classify`
CORRELATIONS = ("pearson", "spearman", "mcc")  # metrics that can be negative
# Counts of odd questions, and how they are said.
ODD_QUESTIONS = {
    "repeated_questions": "asked again",
    "repeated_shots": "solved examples repeated",
    "questions_among_shots": "also among the solved examples",
    "questions_with_twins": "with a wrong answer of the same text as a right one",
    "left_out_rows": "rows left out, which are no questions (a picture, or no text)",
}
_FIX = "Run the evaluation again, or correct the file."
_TASK = re.compile(r"[A-Za-z0-9][\w.-]*")  # it becomes the name of a file
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}(T\d{2}:\d{2}:\d{2}(\.\d+)?(Z|[+-]\d{2}:\d{2})?)?")


@dataclass(frozen=True)
class Score:
    """The score in one metric of one task; None stands for what is not known.

    Attributes:
        task: its name in the harness: letters, digits, `.`, `_`, `-`.
        suite: the group of tasks under which tables show it.
        name: the task's name in tables.
        metric: its name in the harness (`acc`, `f1_macro`, `pearson`).
        metric_name: the metric's name in tables.
        value: a fraction, 0 to 1; a correlation, -1 to 1.
        dataset_id: on the Hub; None for a local file.
        dataset_revision: the commit of that dataset.
        dataset_config: its configuration.
        dataset_split: its split.
        stderr: standard error of the value, in its unit.
        trivial: what the best answer that needs no model scores.
        trivial_kind: which that is: one answer to everything (`constant`), the most frequent one (`majority`), the
            longest or shortest (`length`), or a guess (`chance`).
        normalised: 0 at the trivial answer, 1 at a perfect score.
        shots: solved examples in front of each question.
        num_items: questions that were asked.
        total_items: questions of the data; more than `num_items` where only the first were asked.
        low: the lower end of the value's 95 % interval; `high` is the upper end.
        random_weights: the value of a model of the same shape whose weights are drawn at random.
        questions_sha256: of the texts of the questions that were asked, in whatever order.
        repeated_questions: those of them that ask what an earlier one asks.
        repeated_shots: likewise, of the solved examples.
        questions_among_shots: questions that are also solved examples.
        questions_with_twins: questions with a wrong answer of the same text as a right one.
        left_out_rows: rows of the data that are no questions, such as those with a picture.
        unparsable: share of the answers that could not be read.
        truncated_prompts: questions whose prompt did not fit into the context.
        task_hash: of the task's texts.
        harness: what measured it, with its version.
        date: of the measurement, ISO 8601.
        source: where the figure is from, if it is not of this evaluation: a text or an address.
        step: of the checkpoint; None for the final model.
        tokens: seen by that checkpoint.
    """

    task: str
    suite: str
    name: str
    metric: str
    metric_name: str
    value: float
    dataset_id: str | None = None
    dataset_revision: str | None = None
    dataset_config: str | None = None
    dataset_split: str | None = None
    stderr: float | None = None
    trivial: float | None = None
    trivial_kind: TrivialKind | None = None
    normalised: float | None = None
    shots: int | None = None
    num_items: int | None = None
    total_items: int | None = None
    low: float | None = None
    high: float | None = None
    random_weights: float | None = None
    questions_sha256: str | None = None
    repeated_questions: int | None = None
    repeated_shots: int | None = None
    questions_among_shots: int | None = None
    questions_with_twins: int | None = None
    left_out_rows: int | None = None
    unparsable: float | None = None
    truncated_prompts: int | None = None
    task_hash: str | None = None
    harness: str | None = None
    date: str | None = None
    source: str | None = None
    step: int | None = None
    tokens: int | None = None


@dataclass(frozen=True)
class Results:
    """All scores of one model.

    Attributes:
        model: the folder or repository that was evaluated.
        command: what was run; empty for figures of others.
        versions: of the packages that decide a score.
        scores: one for each task, suite, metric and step.
    """

    model: str
    command: str
    versions: dict[str, str]
    scores: tuple[Score, ...]


@dataclass(frozen=True)
class Measure:
    """One figure that is no score; None stands for what is not known.

    Attributes:
        suite: under which it is shown.
        task: the name in the harness, or `held_out`.
        metric: `bits_per_byte` (of text), `perplexity`, `answer_bits_per_byte` (of the right answer), or a further
            metric of a task.
        value: in the metric's unit.
        stderr: standard error, in the same unit.
        part: a source or register; None for all.
        num_items: documents or questions.
        step: of the checkpoint; None for the final model.
        tokens: seen by that checkpoint.
        low: the lower end of a 95 % interval of the value, or of what chance alone gives; `high` is the upper end.
        random_weights: the value of a model of the same shape whose weights are drawn at random.
    """

    suite: str
    task: str
    metric: str
    value: float
    stderr: float | None = None
    part: str | None = None
    num_items: int | None = None
    step: int | None = None
    tokens: int | None = None
    low: float | None = None
    high: float | None = None
    random_weights: float | None = None


def is_limited(score: Score) -> bool:
    """Return whether only the first questions of the data were asked."""
    return score.total_items is not None and (score.num_items or 0) < score.total_items


def describe_odd_questions(score: Score) -> str:
    """Return the counts of odd questions (asked twice, among the examples, …) in words; empty if there are none."""
    return ", ".join(f"{getattr(score, key):,} {text}" for key, text in ODD_QUESTIONS.items() if getattr(score, key))


def is_trivial(score: Score) -> bool:
    """Return whether a score is no more than two standard errors above the best trivial answer."""
    return score.trivial is not None and score.value <= score.trivial + 2 * (score.stderr or 0.0)


def write_results(path: Path, results: Results) -> None:
    """Write the file that `read_results` reads.

    Raises:
        InputError: a score breaks the rules that are checked when reading; nothing is written.
    """
    content = json.loads(json.dumps(asdict(results)))
    parse_results(content, path)
    write_json(path, content)


def merge_results(path: Path, results: Results) -> None:
    """Write scores as `write_results` does, beside those of other suites that the file holds already.

    Raises:
        InputError: see `write_results` and `read_results`.
    """
    if path.is_file():
        before = read_results(path)
        suites = {score.suite for score in results.scores}
        if FINE_TUNED_SUITE in suites:  # of single tasks, each with a command of its own
            measured = {(score.suite, score.task) for score in results.scores}
            kept = [score for score in before.scores if (score.suite, score.task) not in measured]
        else:
            kept = [score for score in before.scores if score.suite == FINE_TUNED_SUITE]
        if kept:
            command = "; ".join(dict.fromkeys([*before.command.split("; "), results.command]))
            results = Results(results.model, command, {**before.versions, **results.versions}, (*kept, *results.scores))
    write_results(path, results)


def read_results(path: Path) -> Results:
    """Return the scores of a `results.json`.

    Raises:
        InputError: no file, no JSON, or a key that is missing, unknown or wrong; the message names file and key.
    """
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file. The evaluation writes it.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: is not valid JSON ({error}). {_FIX}") from error
    return parse_results(content, path)


def parse_results(content: Any, path: Path) -> Results:
    """Return the scores that a parsed JSON file holds; messages name `path`.

    Raises:
        InputError: see `read_results`.
    """
    _check_keys(path, "", content, Results)
    for key, kind in {"model": str, "command": str, "versions": dict, "scores": list}.items():
        ensure(
            type(content[key]) is kind, f"{path}: key {key} is {content[key]!r}, but must be {kind.__name__}. {_FIX}"
        )
    for name, version in content["versions"].items():
        ensure(isinstance(version, str), f"{path}: key versions.{name} is {version!r}, but must be str. {_FIX}")
    scores = tuple(_parse_score(path, f"scores[{index}]", row) for index, row in enumerate(content["scores"]))
    seen = set()
    for index, score in enumerate(scores):
        identity = (score.suite, score.task, score.metric, score.step)
        ensure(
            identity not in seen,
            f"{path}: key scores[{index}]: {score.task} with {score.metric} stands twice in {score.suite} for the same "
            "step. Keep one.",
        )
        seen.add(identity)
    return Results(content["model"], content["command"], content["versions"], scores)


def write_measures(path: Path, measures: list[Measure]) -> None:
    """Write measures as a list of JSON objects."""
    write_json(path, [asdict(measure) for measure in measures])


def _check_keys(path: Path, place: str, content: Any, kind: Any) -> None:
    """Refuse what is no object with the keys of a dataclass; those with a default may be left out."""
    ensure(
        isinstance(content, dict), f"{path}: key {place or 'of the whole file'} must be a JSON object with keys. {_FIX}"
    )
    prefix = f"{place}." if place else ""
    names = {item.name for item in fields(kind)}
    for item in fields(kind):
        ensure(
            item.name in content or item.default is not MISSING, f"{path}: key {prefix}{item.name} is missing. {_FIX}"
        )
    unknown = sorted(set(content) - names)
    ensure(not unknown, f"{path}: key {prefix}{', '.join(unknown)} is unknown. {_FIX}")


def _parse_score(path: Path, place: str, row: Any) -> Score:
    """Return one score of a file; `place` is its key, for messages."""
    _check_keys(path, place, row, Score)
    for item in fields(Score):
        if item.name in row:
            _check_type(path, f"{place}.{item.name}", row[item.name], item.type)
    score = Score(**row)

    def check(condition: object, key: str, allowed: str) -> None:
        ensure(condition, f"{path}: key {place}.{key} is {getattr(score, key)!r}, but must be {allowed}. {_FIX}")

    lowest = -1.0 if score.metric in CORRELATIONS else 0.0
    for key in ("value", "trivial", "low", "high", "random_weights"):
        value = getattr(score, key)
        check(value is None or lowest <= value <= 1, key, f"{lowest:.0f} to 1: a fraction, 0.1924 for 19.24 %")
    check(score.stderr is None or 0 <= score.stderr <= 1, "stderr", "0 to 1, in the unit of the value")
    check(score.unparsable is None or 0 <= score.unparsable <= 1, "unparsable", "a share of 0 to 1")
    for key in ("shots", "num_items", "total_items", *ODD_QUESTIONS, "truncated_prompts", "step", "tokens"):
        check((getattr(score, key) or 0) >= 0, key, "0 or more")
    check(_TASK.fullmatch(score.task), "task", "letters, digits, '.', '_' and '-': it names a file")
    check(score.date is None or _DATE.fullmatch(score.date), "date", "an ISO 8601 date such as 2024-01-30")
    check(
        score.trivial_kind is None or score.trivial_kind in get_args(TrivialKind),
        "trivial_kind",
        f"one of {', '.join(get_args(TrivialKind))}",
    )
    check((score.trivial is None) == (score.trivial_kind is None), "trivial_kind", "given together with trivial")
    return score


def _check_type(path: Path, key: str, value: Any, declared: Any) -> None:
    """Refuse a value that is not what a field is declared as; a whole number is a float as well."""
    types = set(get_args(declared)) or {declared}  # of `float | None`, or of `float`
    if float in types:
        allowed = type(value) in {int, *types} and (value is None or math.isfinite(value))
    else:
        allowed = type(value) in (types if types & {int, str} else {str, *types})
    names = {float: "a finite float", int: "int", type(None): "null"}
    shown = " or ".join(sorted({names.get(kind, "str") for kind in types}))
    ensure(allowed, f"{path}: key {key} is {value!r}, but must be {shown}. {_FIX}")


@dataclass(frozen=True)
class MeasuredTask:
    """What one task of one model gave: the content of its file in the folder `parts` of an evaluation.

    Attributes:
        identity: hash of all that decides the scores: a task with an equal one is not measured again.
        scores: for `results.json`, without a suite.
        measures: for `measures.json`, without a suite.
        trivial: what answers without a model score, by what they do.
        truncated_prompts: questions whose prompt did not fit.
        weights: a hash of the model's weights; empty in files of earlier versions, which did not write it.
        limited: whether only the first questions were asked.
    """

    identity: str
    scores: list[dict[str, Any]]
    measures: list[dict[str, Any]]
    trivial: dict[str, float] = field(default_factory=dict)
    truncated_prompts: int = 0
    weights: str = ""
    limited: bool = False


def measured_task_path(folder: Path, step: int | None, task: str) -> Path:
    """Return the file of a task and of the checkpoint of a step; None: the final model."""
    return folder / PARTS_FOLDER / ("final" if step is None else f"step{step}") / f"{task}.json"


def is_measured(path: Path, identity: str) -> bool:
    """Return whether an earlier start wrote this file with this identity."""
    try:
        return MeasuredTask(**json.loads(path.read_text(encoding="utf-8"))).identity == identity
    except (OSError, ValueError, TypeError):
        return False


def write_measured_task(path: Path, measured: MeasuredTask) -> None:
    """Write the file of a task; its presence means that it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, asdict(measured))


def collect_measured(
    folder: Path, weights: Mapping[int | None, str], whole_only: bool = False
) -> tuple[list[Score], list[Measure]]:
    """Return the scores and measures of all starts in a folder, in the order of the suites, tasks and steps.

    A task counts in each of its suites. The final model comes before the checkpoints.

    Args:
        folder: of the evaluation.
        weights: hashes of the weights of the models that were measured now, by their step. What was measured of other
            weights at one of these steps is left out.
        whole_only: leave out tasks of which only the first questions were asked.
    """
    order = {name: number for number, name in enumerate((HELD_OUT, BIAS_PAIRS, BIAS_TEXTS, *TASKS))}
    found = []
    for path in (folder / PARTS_FOLDER).glob("*/*.json"):
        measured = MeasuredTask(**json.loads(path.read_text(encoding="utf-8")))
        step = None if path.parent.name == "final" else int(path.parent.name.removeprefix("step"))
        is_same_model = measured.weights in ("", weights.get(step, measured.weights))
        if is_same_model and not (whole_only and measured.limited):
            found.append((order.get(path.stem, len(order)), -1 if step is None else step, path.stem, measured))
    found.sort(key=lambda row: row[:2])
    scores: list[Score] = []
    measures: list[Measure] = []
    tasks_of = {LANGUAGE_MODELING: (HELD_OUT,), **SUITES, BIAS: (BIAS_PAIRS, BIAS_TEXTS)}
    for suite, tasks in tasks_of.items():
        for _, _, task, measured in found:
            if task in tasks:
                scores += [Score(**{**row, "suite": suite}) for row in measured.scores]
                measures += [Measure(**{**row, "suite": suite}) for row in measured.measures]
    return scores, measures


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
    """Return why a published score was measured on other questions than a score, or None if on the same.

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
