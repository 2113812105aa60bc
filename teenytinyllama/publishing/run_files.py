"""What a card reads in a run folder, checked before anything is rendered.

`run.json`, `samples.jsonl`, the evaluations in `metrics.jsonl`, and `checkpoints.json`; scores on benchmarks are
read by `evaluation.results`.

Folders of this machine are nobody's business: where a file lay is cut from what is published, its name stays.
"""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import yaml

from ..checkpoints import list_checkpoints
from ..checks import InputError, MissingFileError, ensure
from ..stage_folder import MANIFEST_NAME, METRICS_NAME, numbered_jsonl_records, sha256_json

# An absolute path of two parts or more in a command, in quotes where it holds a space; no part of a URL, a relative
# path or a repository's name.
_QUOTED = re.compile(r"'(?:/[^'\n]*/|[A-Za-z]:\\[^'\n]*\\)([^'/\\\n]+)'")
_PLAIN = re.compile(r"(?<![\w.~:/\\-])(?:/(?:[^\s'\";/]+/)+|[A-Za-z]:\\(?:[^\s'\";\\]+\\)+)(?=[^\s'\";/\\])")

_TEXTS = {"sample_prompts"}  # keys whose values are texts, whatever they look like


def without_place(text: str) -> str:
    """Return an absolute path cut to its last part; every other text as it is."""
    for kind in (PurePosixPath, PureWindowsPath):
        path = kind(text)
        if path.is_absolute() and len(path.parts) > 2 and "\n" not in text:
            return path.name
    return text


def command_without_places(command: str) -> str:
    """Return a command, or several with `;` between them, with its absolute paths cut to their last parts."""
    return _PLAIN.sub("", _QUOTED.sub(r"'\1'", command))


def record_without_places(path: Path) -> bytes:
    """Return the content of a JSON or YAML record with its absolute paths cut to their last parts.

    Raises:
        InputError: it is damaged.
    """
    text = path.read_text(encoding="utf-8")
    try:
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path}: is damaged ({' '.join(str(error).split())}).") from error
    cut = without_places(content)
    if cut == content:
        return text.encode()
    if path.suffix == ".json":
        return (json.dumps(cut, ensure_ascii=False, indent=1) + "\n").encode()
    return yaml.safe_dump(cut, sort_keys=False, allow_unicode=True, width=120).encode()


def without_places(value: Any, key: str = "") -> Any:
    """Return what JSON holds, its absolute paths cut to their last parts; `key` is where it stands."""
    if isinstance(value, dict):
        return {name: item if name in _TEXTS else without_places(item, str(name)) for name, item in value.items()}
    if isinstance(value, list):
        return [without_places(item, key) for item in value]
    if not isinstance(value, str):
        return value
    return command_without_places(value) if key == "command" else without_place(value)


STAGES = ("pretrain", "sft", "dpo")

_FIX = "It was written by another version or changed since: train again into a new output_dir."
_LINE_FIX = "Restore the file from a copy, or remove that line: the record then has a gap there, and no more is lost."
_MAX_SAMPLES, _MAX_SAMPLE_CHARACTERS = 4, 1000

_NUMBER = (int, float)
_OPTIONAL_NUMBER = (int, float, type(None))
_OPTIONAL_TEXT = (str, type(None))
# What a card reads in run.json, by dotted key, with the types that are allowed there.
_REQUIRED: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("package_version", "command", "created"), (str,)),
    "commit": _OPTIONAL_TEXT,
    "config": (dict,),
    "model.preset": _OPTIONAL_TEXT,
    "model.base_model": _OPTIONAL_TEXT,
    **dict.fromkeys(
        ("model.num_parameters", "model.num_hidden_layers", "model.hidden_size", "model.vocab_size", "model.context"),
        (int,),
    ),
    "data.packed_sha256": (str,),
    "data.tokenizer_sha256": (str,),
    "data.sources": (dict,),
    "data.train_tokens": (int,),
    "data.validation_documents": (int,),
    **dict.fromkeys(("training.steps", "training.tokens", "training.tokens_per_step", "training.world_size"), (int,)),
    **dict.fromkeys(("training.epochs", "training.seconds", "training.tokens_per_second"), _NUMBER),
    **dict.fromkeys(("training.backend", "training.precision", "training.hardware"), (str,)),
    "training.zero_stage": (int, type(None)),
    **dict.fromkeys(("results.initial.bits_per_byte", "results.initial.perplexity"), _OPTIONAL_NUMBER),
    **dict.fromkeys(("results.final.bits_per_byte", "results.final.perplexity"), _OPTIONAL_NUMBER),
    "results.final.per_source": (dict,),
    "hashes": (dict,),
    "versions": (dict,),
}
_REQUIRED_OF_SOURCE: dict[str, tuple[type, ...]] = {
    "documents": (int,),
    "bytes": (int,),
    "tokens": (int,),
    "licenses": (list,),
}


def read_run(folder: Path) -> dict[str, Any]:
    """Return run.json with every key of `_REQUIRED` checked.

    Raises:
        InputError: no run folder, an unfinished run, a stage without a card, or a key that is missing or wrong.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        if not folder.is_dir():
            raise MissingFileError(f"run_folder={folder}: no such folder. Give the output_dir of `ttl pretrain`.")
        is_begun = bool(list_checkpoints(folder)) or (folder / METRICS_NAME).exists()
        raise InputError(
            f"run_folder={folder}: the run is not complete, {MANIFEST_NAME} is written at its end. Run the same "
            "command again to resume it."
            if is_begun
            else f"run_folder={folder}: is not a run folder, it has no {MANIFEST_NAME}. Give the output_dir of "
            "`ttl pretrain`."
        )
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: is not valid JSON ({error}). {_FIX}") from error
    ensure(isinstance(run, dict), f"{path}: must hold a JSON object. {_FIX}")
    _check_key(path, run, ("stage",), (str,))
    stages = ", ".join(STAGES)
    ensure(run["stage"] in STAGES, f"{path}: stage={run['stage']} has no model card. It must be one of {stages}.")
    for key, types in _REQUIRED.items():
        _check_key(path, run, tuple(key.split(".")), types)
    for name in run["data"]["sources"]:
        for what, types in _REQUIRED_OF_SOURCE.items():
            _check_key(path, run["data"]["sources"], (name, what), types, "data.sources.")
    for name in run["results"]["final"]["per_source"]:
        for what in ("bits_per_byte", "perplexity"):
            per_source = run["results"]["final"]["per_source"]
            _check_key(path, per_source, (name, what), _OPTIONAL_NUMBER, "results.final.per_source.")
    return dict(run)


def _check_key(
    path: Path, content: Any, keys: tuple[str, ...], types: tuple[type, ...], prefix: str = "", fix: str = _FIX
) -> None:
    """Refuse a file in which the key, nested as `keys`, is missing or of another type."""
    shown, value = prefix + ".".join(keys), content
    for key in keys:
        ensure(
            isinstance(value, dict) and key in value,
            f"{path}: key {shown} is missing. {fix}",
        )
        value = value[key]
    # Exact types: to isinstance, true would be an int.
    allowed = " or ".join("null" if kind is type(None) else kind.__name__ for kind in types)
    ensure(
        type(value) in types and (not isinstance(value, float) or math.isfinite(value)),
        f"{path}: key {shown} is {value!r}, but must be a finite {allowed}. {fix}"
        if set(types) & {int, float}
        else f"{path}: key {shown} is {value!r}, but must be {allowed}. {fix}",
    )


def read_metrics(path: Path, last_step: int | None = None) -> list[dict[str, Any]]:
    """Return the records of metrics.jsonl up to a step; a last line that is still being written is left out.

    Raises:
        InputError: a line is damaged; the message names file and line.
    """
    records = []
    for place, row in _read_rows(path):
        _check_key(place, row, ("step",), (int,), fix=_LINE_FIX)
        for key in ("tokens", "loss", "bits_per_byte", "perplexity", "scored_tokens", "kwh", "kg_co2e"):
            if key in row:
                _check_key(place, row, (key,), _OPTIONAL_NUMBER, fix=_LINE_FIX)
        records.append(row)
    return [record for record in records if last_step is None or record["step"] <= last_step]


def _read_rows(path: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield each row of a jsonl file with its place for messages; nothing without a file.

    Until the run has ended, a last line without its end is one that is still being written.

    Raises:
        InputError: a line is no JSON object.
    """
    is_ended = (path.parent / MANIFEST_NAME).is_file()
    for number, row in numbered_jsonl_records(path, fix=_LINE_FIX, is_ended=is_ended):
        yield Path(f"{path}, line {number}"), row


def read_samples(path: Path) -> list[dict[str, Any]]:
    """Return step, prompt and text of the samples of the last step, at most a few and not endless; [] without a file.

    Raises:
        InputError: a line is not JSON or lacks `step`, `prompt` or `text`.
    """
    rows = []
    for place, row in _read_rows(path):
        for key, types in {"step": (int,), "prompt": (str,), "text": (str,)}.items():
            _check_key(place, row, (key,), types, fix=_LINE_FIX)
        text = row["text"]  # the prompt and its continuation, decoded together
        if "ended" in row:  # an answer alone
            text = f"Pergunta: {row['prompt']}\n\nResposta: {text}"
        if len(text) > _MAX_SAMPLE_CHARACTERS:
            text = text[:_MAX_SAMPLE_CHARACTERS] + " […]"
        rows.append({"step": row["step"], "prompt": row["prompt"], "text": text})
    last_step = max((row["step"] for row in rows), default=None)
    return [row for row in rows if row["step"] == last_step][:_MAX_SAMPLES]


def read_evaluations(path: Path) -> list[dict[str, Any]]:
    """Return the held-out evaluations of a run's `metrics.jsonl`, those of one set of documents, by step.

    The final evaluation is often of more documents; it stands in `run.json`, and among the others it would show a
    difference of documents as one of training.

    Raises:
        InputError: a line is not JSON, or an evaluation lacks a figure.
    """
    rows: list[dict[str, Any]] = []
    for place, row in _read_rows(path):
        figures: tuple[str, ...]
        if "bits_per_byte" in row:
            figures, basis = ("bits_per_byte", "perplexity"), "scored_tokens"
        elif "preference_loss" in row:
            figures, basis = ("accuracy", "margin", "preference_loss"), "pairs"
        else:
            continue
        for key in ("step", "tokens", basis):
            _check_key(place, row, (key,), (int,), fix=_LINE_FIX)
        for key in (*figures, "kwh", "kg_co2e"):
            _check_key(place, row, (key,), _NUMBER, fix=_LINE_FIX)
        if not rows or row[basis] == rows[0]["basis"]:
            rows.append({**{key: row[key] for key in ("step", "tokens", *figures, "kwh", "kg_co2e")},
                         "basis": row[basis]})  # fmt: skip
    return rows


def read_checkpoints(path: Path) -> list[dict[str, Any]] | None:
    """Return what a publisher has recorded of a run's published checkpoints, or None without a file.

    Raises:
        InputError: no JSON, or a record that lacks a key of `check_checkpoints`.
    """
    if not path.is_file():
        return None
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: is not valid JSON ({error}). Publish the run again.") from error
    entries: Any = records.get("checkpoints") if isinstance(records, dict) else None
    ensure(isinstance(entries, list), f"{path}: must hold a list of checkpoints. Publish the run again.")
    for index, entry in enumerate(entries):
        _check_key(path, entry, ("sha256",), (dict,), f"[{index}].")
    return check_checkpoints([card_row(entry) for entry in entries], path)


def card_row(entry: dict[str, Any]) -> dict[str, Any]:
    """Return an entry of a published record as the card's table wants it: the hash of the weights, or one of all."""
    hashes = list(entry["sha256"].values())
    return {**entry, "sha256": hashes[0] if len(hashes) == 1 else sha256_json(entry["sha256"])}


def check_checkpoints(records: Any, path: Path) -> list[dict[str, Any]]:
    """Return records of published checkpoints.

    Each has branch, step, tokens, loss, bits_per_byte, kwh, kg_co2e and sha256; the figures may be None.

    Raises:
        InputError: one lacks a key; `path` is for the message.
    """
    ensure(isinstance(records, list), f"{path}: must be a JSON list. Publish the run again.")
    for index, record in enumerate(records):
        for key in ("branch", "sha256"):
            _check_key(path, record, (key,), (str,), f"[{index}].")
        for key in ("step", "tokens"):
            _check_key(path, record, (key,), (int,), f"[{index}].")
        for key in ("loss", "bits_per_byte", "kwh", "kg_co2e"):
            _check_key(path, record, (key,), _OPTIONAL_NUMBER, f"[{index}].")
    return list(records)
