"""Cards on the test Hub: the front matter of README.md, its check in the Hub's form, and `.eval_results`."""

import json
import re
from typing import Any

import yaml
from hub_protocol import Answer, json_answer
from hub_store import Commit, Repository

# Some of the ids that the Hub takes (huggingface.co/docs/hub/repositories-licenses).
_LICENCES = (
    "afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bigscience-bloom-rail-1.0 bigscience-openrail-m bsd bsd-2-clause bsd-3-clause "
    "bsl-1.0 cc cc-by-2.0 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 "
    "cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-2.0 creativeml-openrail-m "
    "ecl-2.0 epl-2.0 eupl-1.1 eupl-1.2 gemma gfdl gpl gpl-2.0 gpl-3.0 isc lgpl lgpl-2.1 lgpl-3.0 llama2 llama3 llama3.1 llama3.2 "
    "llama3.3 mit mpl-2.0 ms-pl odbl odc-by ofl-1.1 openrail openrail++ osl-3.0 other pddl postgresql unknown unlicense wtfpl zlib"
)
LICENCES = set(_LICENCES.split())
TEXTS = ("pipeline_tag", "library_name", "license_name", "license_link", "pretty_name")
LISTS = ("tags", "datasets", "metrics", "base_model", "language", "license")
NO_METADATA = (
    "empty or missing yaml metadata in repo card (https://huggingface.co/docs/hub/model-cards#model-card-metadata)"
)


def validate(payload: dict[str, Any]) -> Answer:
    """Answer whether the front matter of a card is valid: errors with status 400, warnings with 200."""
    card, errors = _parsed(str(payload.get("content", "")))
    errors = errors or problems(card)
    warnings = [] if card or errors else [NO_METADATA]
    shown = {"errors": [{"message": text} for text in errors], "warnings": [{"message": text} for text in warnings]}
    return json_answer(shown, 400 if errors else 200)


def errors_of(content: str) -> list[str]:
    """Return what is wrong with the front matter of a card."""
    card, errors = _parsed(content)
    return errors or problems(card)


def _parsed(content: str) -> tuple[dict[str, Any], list[str]]:
    """Return the front matter of a card, and why it could not be read."""
    found = re.match(r"\s*---[ \t]*\r?\n(.*?)(?:^---[ \t]*$)", content, re.DOTALL | re.MULTILINE)
    if not found:
        return {}, []
    try:
        card = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        return {}, [f"YAML is invalid: {str(error).splitlines()[0]}"]
    if card is None:
        return {}, []
    if not isinstance(card, dict):
        return {}, ["YAML metadata has to be a mapping"]
    # Dates become text, as in the Hub's answers.
    return json.loads(json.dumps(card, default=str)), []


def problems(card: dict[str, Any]) -> list[str]:
    """Return what is wrong with the values of a card's front matter."""
    found = [f'"{name}" must be a string' for name in TEXTS if not isinstance(card.get(name, ""), str)]
    for name in LISTS:
        values = card.get(name, [])
        values = values if isinstance(values, list) else [values]
        found += [f'"{name}[{at}]" must be a string' for at, value in enumerate(values) if not isinstance(value, str)]
        if name == "license" and not set(map(str, values)) <= LICENCES:
            found.append(f'"license" must be one of [{", ".join(sorted(LICENCES))}]')
        if name == "language":
            wrong = [
                value
                for value in map(str, values)
                if not re.fullmatch(r"[a-z]{2,3}([_-]\w+)*|code|multilingual", value)
            ]
            found += [
                f'"language" with value "{value}" is not valid. It must be an ISO 639-1, 639-2 or 639-3 code'
                for value in wrong
            ]
    emissions = card.get("co2_eq_emissions", 0)
    emissions = emissions.get("emissions") if isinstance(emissions, dict) else emissions
    if not isinstance(emissions, (int, float)):
        found.append('"co2_eq_emissions.emissions" must be a number')
    return found + _index_problems(card.get("model-index", []))


def _index_problems(index: Any) -> list[str]:
    """Return what is wrong with a model-index."""
    if not isinstance(index, list) or not all(isinstance(model, dict) for model in index):
        return ['"model-index" must be an array of objects']
    found = []
    for at, model in enumerate(index):
        found += [] if isinstance(model.get("name"), str) else [f'"model-index[{at}].name" is required']
        for number, result in enumerate(model.get("results") or []):
            where = f"model-index[{at}].results[{number}]"
            required = {
                "task.type": ("task", "type"),
                "dataset.type": ("dataset", "type"),
                "dataset.name": ("dataset", "name"),
            }
            found += [
                f'"{where}.{label}" is required'
                for label, (part, name) in required.items()
                if not isinstance(result.get(part), dict) or not result[part].get(name)
            ]
            for metric in result.get("metrics") or [{}]:
                found += [
                    f'"{where}.metrics[].{name}" is required' for name in ("type", "value") if metric.get(name) is None
                ]
    return found


def front_matter(repository: Repository, commit: Commit) -> dict[str, Any]:
    """Return the front matter of the README of a commit, empty if there is none that can be read."""
    if "README.md" not in commit.files:
        return {}
    return _parsed(repository.path_of(commit, "README.md").read_text(encoding="utf-8", errors="replace"))[0]


def eval_results(repository: Repository, commit: Commit) -> list[dict[str, Any]]:
    """Return the entries of `.eval_results/*.yaml`, each with its file, or the reason why a file was left out."""
    found: list[dict[str, Any]] = []
    for name in commit.files:
        if not re.fullmatch(r"\.eval_results/[^/]+\.ya?ml", name):
            continue
        try:
            entries = yaml.safe_load(repository.path_of(commit, name).read_text(encoding="utf-8"))
            entries = json.loads(json.dumps(entries, default=str))
            assert all({"id", "task_id"} <= entry["dataset"].keys() and "value" in entry for entry in entries)
        except (yaml.YAMLError, AssertionError, TypeError, KeyError, AttributeError) as error:
            found.append({"filename": name, "error": f"{type(error).__name__}: not a list of results"})
            continue
        found += [{"filename": name, "data": entry} for entry in entries]
    return found
