"""Reference cards: published models in the form of our cards, from a YAML file of figures that each have a source.

`python -m teenytinyllama.publishing.reference_cards model_cards` renders every YAML file of a folder into a card.
"""

import copy
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from ..checks import InputError, ensure, ensure_file, run_main
from ..evaluation.results import Results, Score, parse_results
from .card import render_card
from .facts import CardFacts, safe_name
from .run_files import STAGES
from .wording import CARD_LANGUAGES, DEFAULT_CARD_LANGUAGE

# What a file may say; what it leaves out is not published. `run` has the keys of a run's run.json.
_KEYS = ("repository", "run", "energy", "evaluations", "suites", "prompts", "sources", "remarks")
_RUN: dict[str, Any] = {
    "stage": None,
    "config": {"license": None},
    "model": dict.fromkeys(
        ("preset", "base_model", "num_parameters", "num_hidden_layers", "hidden_size", "vocab_size", "context")
    ),
    "data": {"sources": {}, "hub_datasets": [], "train_tokens": None, "validation_documents": None},
    "training": dict.fromkeys(
        ("steps", "tokens", "tokens_per_step", "epochs", "seconds", "tokens_per_second", "median_tokens_per_second",
         "world_size", "backend",
         "zero_stage", "precision", "hardware")
    ),
    "results": {"final": {"bits_per_byte": None, "perplexity": None}},
}  # fmt: skip
_SOURCE: dict[str, Any] = {"documents": None, "bytes": None, "tokens": None, "licenses": []}
_ENERGY = dict.fromkeys(
    ("kwh", "cpu_kwh", "gpu_kwh", "ram_kwh", "kg", "country", "pue", "hours", "num_starts", "incomplete")
)
_EVALUATION = dict.fromkeys(("step", "tokens", "perplexity", "bits_per_byte", "kwh", "kg_co2e", "basis"))
_NOT_IN_A_REFERENCE = dict.fromkeys(("package_version", "command", "commit", "created"))


def read_reference(path: Path) -> CardFacts:
    """Return the facts of a reference card.

    Raises:
        InputError: no YAML, an unknown key, a missing one without which there is no card, or a wrong score.
    """
    try:
        content = yaml.safe_load(ensure_file("reference", path, "Give a YAML file.").read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InputError(f"{path}: is not valid YAML ({' '.join(str(error).split())}).") from error
    ensure(isinstance(content, dict), f"{path}: must hold a YAML mapping.")
    _check_known(path, "", content, _KEYS)
    for key in ("repository", "run", "sources"):
        ensure(content.get(key), f"{path}: key {key} is missing.")
    run = _filled(path, "run.", _RUN, content["run"])
    ensure(run["stage"] in STAGES, f"{path}: key run.stage={run['stage']}: must be one of {', '.join(STAGES)}.")
    for name, source in run["data"]["sources"].items():
        run["data"]["sources"][name] = _filled(path, f"run.data.sources.{name}.", _SOURCE, source)
    for index, source in enumerate(content["sources"]):
        missing = [key for key in ("en", "pt", "url") if not isinstance(source, dict) or key not in source]
        ensure(not missing, f"{path}: key sources[{index}] lacks {', '.join(missing)}: each figure needs its source.")
    evaluations = [
        _filled(path, f"evaluations[{index}].", _EVALUATION, row)
        for index, row in enumerate(content.get("evaluations", []))
    ]
    energy = content.get("energy")
    return CardFacts(
        origin="reference",
        name=safe_name(content["repository"]),
        run={**run, **_NOT_IN_A_REFERENCE, "hashes": {}, "versions": {}},
        is_adapter=False,
        energy=None if energy is None else _filled(path, "energy.", _ENERGY, energy),
        evaluations=evaluations,
        num_evaluations=len(evaluations),
        results=_read_suites(path, content.get("suites", []), content["repository"]),
        checkpoints=None,
        samples=[],
        prompts=content.get("prompts", []),
        sources=tuple(content["sources"]),
        remarks=tuple(content.get("remarks", [])),
    )


def _check_known(path: Path, place: str, content: Any, known: Any) -> None:
    ensure(isinstance(content, dict), f"{path}: key {place.rstrip('.') or 'of the whole file'} must be a mapping.")
    unknown = sorted(set(content) - set(known))
    ensure(not unknown, f"{path}: key {place}{', '.join(map(str, unknown))} is unknown.")


def _filled(path: Path, place: str, template: dict[str, Any], content: Any) -> dict[str, Any]:
    """Return the content with the template's value for every key that it leaves out; an unknown key is refused."""
    _check_known(path, place, content, template)
    filled = copy.deepcopy(template)
    for key, value in content.items():
        nested = isinstance(template[key], dict) and template[key]  # an empty one takes any keys
        filled[key] = _filled(path, f"{place}{key}.", template[key], value) if nested else value
    return filled


def _read_suites(path: Path, suites: list[dict[str, Any]], model: str) -> Results | None:
    """Return scores; what a suite says beside its `scores` holds for each of them."""
    rows = []
    for index, suite in enumerate(suites):
        _check_known(path, f"suites[{index}].", suite, [*(field.name for field in fields(Score)), "scores"])
        shared = {key: value for key, value in suite.items() if key != "scores"}
        rows += [{**shared, **score} for score in suite.get("scores", [])]
    return parse_results({"model": model, "command": "", "versions": {}, "scores": rows}, path) if rows else None


def render_reference_card(path: Path) -> str:
    """Return the card of a file of published figures.

    Raises:
        InputError: see `read_reference`.
    """
    return render_card(read_reference(path), CARD_LANGUAGES[DEFAULT_CARD_LANGUAGE])


def write_reference_cards(folder: Path) -> list[Path]:
    """Write the card of every YAML file of a folder beside it and return their paths.

    Raises:
        InputError: no such file, or see `read_reference`; then nothing is written.
    """
    cards = {path.with_suffix(".md"): render_reference_card(path) for path in sorted(folder.glob("*.yaml"))}
    ensure(cards, f"folder={folder}: holds no YAML files of published figures.")
    for path, text in cards.items():
        path.write_text(text, encoding="utf-8")
    return list(cards)


def _main() -> None:
    ensure(len(sys.argv) == 2, "reference: takes one argument, the folder of the YAML files.")
    write_reference_cards(Path(sys.argv[1]))


if __name__ == "__main__":
    sys.exit(run_main(_main))
