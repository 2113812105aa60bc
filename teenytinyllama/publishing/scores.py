"""Scores on benchmarks as they are published: in the tables of a card, in its model-index, in `.eval_results/`."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ..evaluation.config import BIAS
from ..evaluation.results import FINE_TUNED_SUITE, Results, Score, is_limited, is_trivial, read_results
from ..stage_folder import RESULTS_NAME
from .wording import one_line

if TYPE_CHECKING:
    from huggingface_hub import EvalResult


EVAL_RESULTS_FOLDER = ".eval_results"
# Data sets that the Hub takes results of, and the id of their task in `eval.yaml`. The Hub keeps the list and shows
# it at https://huggingface.co/datasets?benchmark=benchmark:official; these are the ones that its documentation names
# (docs/hub/eval-results.md of huggingface/hub-docs, commit 064c754; the last two ids as results published elsewhere
# write them). None is Portuguese.
HUB_BENCHMARKS = {
    "cais/hle": "hle",
    "Idavidrein/gpqa": "gpqa_diamond",
    "TIGER-Lab/MMLU-Pro": "mmlu_pro",
    "openai/gsm8k": "gsm8k",
}
# The harness's names of metrics by the Hub's (https://huggingface.co/metrics).
METRIC_IDS = {"acc": "accuracy", "acc_norm": "accuracy", "f1_macro": "f1", "pearson": "pearsonr",
              "spearman": "spearmanr", "mcc": "matthews_correlation"}  # fmt: skip
_TEXT_GENERATION: dict[str, Any] = {"task_type": "text-generation", "task_name": "Text Generation"}


def final_scores(results: Results) -> list[Score]:
    """Return the scores of the final model on benchmarks; figures of the suite `bias` are none, see `bias_rows`."""
    return [score for score in results.scores if score.step is None and score.suite != BIAS]


def bias_rows(results: Results) -> list[Score]:
    """Return what the suite `bias` measured of the final model: shares of pairs, and of toxic texts about groups."""
    return [score for score in results.scores if score.step is None and score.suite == BIAS]


def benchmark_facts(results: Results | None) -> dict[str, Any]:
    """Return what a card's template says of scores: tables, course, trivial ones, versions and prejudice."""
    return {
        "suites": benchmark_tables(results) if results else [],
        "progress": benchmark_progress(results) if results else None,
        "trivial": ", ".join(trivial_names(results)) if results else "",
        "benchmark_versions": ", ".join(map(" ".join, results.versions.items())) if results else "",
        "prejudice": bias_rows(results) if results else [],
    }


def own_scores(results: Results) -> list[Score]:
    """Return the scores of the final model itself, without those of classifiers that were made from it."""
    return [score for score in final_scores(results) if score.suite != FINE_TUNED_SUITE]


def benchmark_tables(results: Results) -> list[dict[str, Any]]:
    """Return for each suite its name, its final scores, their harness, and their sources (text and address)."""
    suites: dict[str, list[Score]] = {}
    for score in final_scores(results):
        suites.setdefault(score.suite, []).append(score)
    return [
        {
            "suite": suite,
            "scores": scores,
            "sources": [
                (suite if source.startswith("https://") else source, source)
                for source in sorted({score.source for score in scores if score.source})
            ],
            "harness": ", ".join(sorted({score.harness for score in scores if score.harness})),
            "has_shots": any(score.shots is not None for score in scores),
            "has_normalised": any(score.normalised is not None for score in scores),
        }
        for suite, scores in suites.items()
    ]


def benchmark_progress(results: Results) -> dict[str, Any] | None:
    """Return the names of the tasks and a row of values for each step that was evaluated, or None if none was."""
    benchmarks = [score for score in results.scores if score.suite != BIAS]
    steps = sorted({score.step for score in benchmarks if score.step is not None})
    if not steps:
        return None
    found = {(score.suite, score.task, score.metric, score.step): score for score in benchmarks}
    tasks = list(dict.fromkeys(key[:3] for key in found if key[3] is not None))
    names = [next(score.name for key, score in found.items() if key[:3] == task) for task in tasks]
    rows = []
    for step in steps:
        scores = [found.get((*task, step)) for task in tasks]
        tokens = next((score.tokens for score in scores if score is not None), None)
        rows.append({"step": step, "tokens": tokens, "scores": scores})
    return {"names": names, "rows": rows}


def trivial_names(results: Results) -> list[str]:
    """Return the tasks, and by which metrics, in which the final model is no better than the best trivial answer."""
    metrics: dict[str, list[str]] = {}
    for score in final_scores(results):
        if is_trivial(score):
            metrics.setdefault(score.name, []).append(score.metric_name)
    return [f"{name} ({'; '.join(dict.fromkeys(found))})" for name, found in metrics.items()]


def metric_ids(results: Results) -> list[str]:
    """Return the Hub's names of the metrics of the final scores."""
    return sorted({METRIC_IDS.get(score.metric, one_line(score.metric)) for score in final_scores(results)})


def percent(fraction: float) -> float:
    """Return a score as it is published: in percent, with two decimals."""
    return round(100 * fraction, 2)


def model_index_of_results(results: Results) -> "list[EvalResult]":
    """Return the final model's own scores as entries of a card's model-index, in percent."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            **_TEXT_GENERATION,
            dataset_type=one_line(score.dataset_id or _slug(score.name)),
            dataset_name=one_line(score.name),
            dataset_config=config,
            dataset_split=_line(score.dataset_split),
            dataset_revision=_line(score.dataset_revision),
            dataset_args=None if score.shots is None else {"num_few_shot": score.shots},
            metric_type=METRIC_IDS.get(score.metric, one_line(score.metric)),
            metric_name=one_line(score.metric_name),
            metric_value=percent(score.value),
            metric_args=None if score.stderr is None else {"stderr": percent(score.stderr)},
            **_source(score),
        )
        for score, config in zip(own_scores(results), _configs(own_scores(results)), strict=True)
    ]


def _configs(scores: list[Score]) -> list[str]:
    """Return a configuration for each score that no other task shares.

    A model-index joins all entries of one dataset, configuration, split and revision under the name, source and number
    of examples of the first: both tasks on `assin2`, or one task in two suites, would become one.
    """
    owners: dict[tuple[Any, ...], tuple[str, str]] = {}
    configs = []
    for score in scores:
        owner = (score.suite, score.task)
        config = one_line(score.dataset_config or score.task)
        place = (score.dataset_id, score.dataset_split, score.dataset_revision)
        if owners.setdefault((*place, config), owner) != owner:
            config = one_line(f"{score.task} ({score.suite})")
            owners[(*place, config)] = owner
        configs.append(config)
    return configs


def model_index_of_held_out(run: dict[str, Any]) -> "list[EvalResult]":
    """Return perplexity and bits per byte on the held-out part of a run's own data, those that were measured."""
    from huggingface_hub import EvalResult

    final, names = run["results"]["final"], list(run["data"]["sources"])
    held_out = run["data"]["validation_documents"]
    return [
        EvalResult(
            **_TEXT_GENERATION,
            dataset_type=_slug(names[0]) if len(names) == 1 else "held-out",
            dataset_name="held-out part of " + one_line(", ".join(names)),
            dataset_split="validation",
            dataset_args=None if held_out is None else {"num_held_out": held_out},
            metric_type=key,
            metric_name=name,
            metric_value=float(f"{final[key]:.6g}"),
        )
        for key, name in (("perplexity", "perplexity (per token)"), ("bits_per_byte", "bits per byte"))
        if final[key] is not None
    ]


def eval_result_files(folder: Path) -> dict[str, bytes]:
    """Return the files of `.eval_results/` by their paths in the repository, one for each score; {} without any.

    The Hub shows them beside the model and on the benchmark's page, and only for benchmarks on its list. Scores on
    other data stand in the card alone, in its tables and its model-index.

    Args:
        folder: of a run.

    Raises:
        InputError: `results.json` is damaged.
    """
    path = folder / RESULTS_NAME
    return eval_result_files_of(read_results(path)) if path.is_file() else {}


def eval_result_files_of(results: Results) -> dict[str, bytes]:
    """Return the files of `.eval_results/` for these results; see `eval_result_files`."""
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    files: dict[str, bytes] = {}
    for score in own_scores(results):
        if score.dataset_id not in HUB_BENCHMARKS or is_limited(score):  # the first questions are not the benchmark
            continue
        entry = EvalResultEntry(
            dataset_id=one_line(score.dataset_id),
            task_id=HUB_BENCHMARKS[score.dataset_id],
            value=percent(score.value),
            dataset_revision=_line(score.dataset_revision),
            date=score.date,
            notes=_notes(score, results),
            **_source(score),
        )
        content = yaml.safe_dump(eval_result_entries_to_yaml([entry]), allow_unicode=True, sort_keys=False)
        files[_free_path(files, score)] = content.encode()
    return files


def _free_path(files: dict[str, bytes], score: Score) -> str:
    """Return a path for a score; each variant of a task (another suite or metric) has a file of its own."""
    variant = _slug(f"{score.task}-{score.suite}-{score.metric}").replace("/", "-")
    names = (score.task, variant, *(f"{variant}-{number}" for number in range(2, len(files) + 3)))
    return next(path for name in names if (path := f"{EVAL_RESULTS_FOLDER}/{name}.yaml") not in files)


def _notes(score: Score, results: Results) -> str:
    """Return how a score came about, in one line."""
    parts = [f"{score.metric} in percent"]
    if score.stderr is not None:
        parts.append(f"standard error {percent(score.stderr)}")
    if score.shots is not None:
        parts.append(f"{score.shots}-shot")
    if score.num_items is not None:
        parts.append(f"{score.num_items} items")
    if score.trivial is not None:
        better = "no better" if is_trivial(score) else "better"
        parts.append(f"{better} than a trivial answer ({score.trivial_kind}: {percent(score.trivial)})")
    parts += [score.harness] if score.harness else []
    parts += [f"task hash {score.task_hash}"] if score.task_hash else []
    parts += [f"{name} {version}" for name, version in results.versions.items()]
    return one_line("; ".join(dict.fromkeys(parts)))  # the harness may stand among the versions


def _source(score: Score) -> dict[str, Any]:
    """Return the source of a figure for the Hub's forms, which want an address."""
    source = one_line(score.source or "")
    return {"source_name": one_line(score.suite), "source_url": source} if source.startswith("https://") else {}


def _line(text: str | None) -> str | None:
    return None if text is None else one_line(text)


def _slug(text: str) -> str:
    """Return a text as it may stand for the name of a dataset."""
    return re.sub(r"[^A-Za-z0-9._/-]+", "-", text).strip("-") or "held-out"
