"""Facts of a card, whichever language it is written in: read from the files of a run and checked.

Read are `run.json`, `samples.jsonl`, the evaluations in `metrics.jsonl`, `checkpoints.json` and `emissions.csv`; scores
on benchmarks are read by `evaluation.results`.
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..checks import InputError, MissingFileError, ensure, model_license
from ..energy.emissions import place
from ..energy.ledger import describe_incomplete, num_speed_tests, read_energy
from ..evaluation.results import Results, read_results
from ..model_files import ADAPTER_CONFIG_NAME
from ..people.share import read_votes
from ..stage_folder import (
    CHECKPOINTS_NAME,
    CONFIG_NAME,
    EMISSIONS_NAME,
    ENERGY_JSON_NAME,
    ENVIRONMENT_NAME,
    MANIFEST_NAME,
    METRICS_NAME,
    PEOPLE_NAME,
    RESULTS_NAME,
    SAMPLES_NAME,
    numbered_jsonl_records,
    sha256_json,
)
from .wording import command_without_places, is_hub_id, one_line, public_buckets

STAGES = ("pretrain", "sft", "dpo")
MAX_EVALUATIONS = 12  # rows of the table of evaluations; a run may make hundreds
_LINKED = (CONFIG_NAME, METRICS_NAME, SAMPLES_NAME, RESULTS_NAME, PEOPLE_NAME, EMISSIONS_NAME, ENERGY_JSON_NAME,
           ENVIRONMENT_NAME, CHECKPOINTS_NAME)  # fmt: skip
# Licence names with conditions on commercial use, on derived works or on how they are shared.
_RESTRICTED = re.compile(r"\b(nc|nd|sa|gpl|agpl|lgpl|non-?commercial)\b", re.IGNORECASE)


@dataclass(frozen=True)
class CardFacts:
    """What a card says.

    Attributes:
        origin: `run`, or `reference` for figures that others published.
        name: `owner/name` or a name alone; only letters that mean nothing in Markdown, HTML, Python and YAML.
        run: what `run.json` holds; in a reference card, what is not known is None.
        is_adapter: whether the weights are an adapter alone.
        energy: sums over all starts, see `_read_energy`; None where nothing was measured.
        evaluations: see `read_evaluations`, thinned.
        num_evaluations: how many there were.
        results: scores on benchmarks, or None.
        checkpoints: see `check_checkpoints`, or None.
        samples: see `read_samples`.
        prompts: for the page's widget.
        files: names in the run's folder.
        sources: of a reference card: what is from where, by language, and the address (`url`).
        remarks: of a reference card, by language.
        votes: of people, see `people.share.read_votes`, or None.
    """

    origin: Literal["run", "reference"]
    name: str
    run: dict[str, Any]
    is_adapter: bool
    energy: dict[str, Any] | None
    evaluations: list[dict[str, Any]]
    num_evaluations: int
    results: Results | None
    checkpoints: list[dict[str, Any]] | None
    samples: list[dict[str, Any]]
    prompts: list[str]
    files: frozenset[str] = frozenset()
    sources: tuple[dict[str, str], ...] = ()
    remarks: tuple[dict[str, str], ...] = ()
    votes: dict[str, Any] | None = None

    @property
    def is_chat(self) -> bool:
        """Return whether the model answers questions."""
        return str(self.run["stage"]) != "pretrain"

    @property
    def license(self) -> str:
        """Return the Hub's name of the licence of the weights.

        Raises:
            InputError: the run's record names none that the Hub has.
        """
        stated = one_line(self.run["config"].get("license") or "apache-2.0")
        return model_license(f"{MANIFEST_NAME}: config.license", stated)

    @property
    def branch(self) -> dict[str, Any] | None:
        """Return what the run was branched off: `step`, and `kwh` and `kg_co2e` up to there; None for another run."""
        found: dict[str, Any] | None = self.run.get("branch")
        return found

    @property
    def hub_base(self) -> str | None:
        """Return the base model, if it is a repository on the Hub."""
        base, is_local = self.run["model"]["base_model"], self.run["model"].get("base_is_local")
        return base if base and is_hub_id(base) and not is_local else None

    @property
    def hub_datasets(self) -> list[str]:
        """Return the datasets on the Hub that the training data was read from, as the run recorded them."""
        names = self.run["data"].get("hub_datasets")  # runs of the first versions did not
        return [name for name in names if isinstance(name, str) and is_hub_id(name)] if isinstance(names, list) else []

    @property
    def corpora(self) -> list[dict[str, Any]]:
        """Return the corpora of `ttl corpus` that the training data is of, as packing noted them; see provenance.py."""
        found = self.run["data"].get("corpora")
        return [corpus for corpus in found if isinstance(corpus, dict)] if isinstance(found, list) else []

    @property
    def links(self) -> list[str]:
        """Return the files of the folder that a reader may want."""
        return [name for name in _LINKED if name in self.files]


def _with_mean_speed(training: dict[str, Any]) -> dict[str, Any]:
    """Return the record of a training whose speed is that of all its seconds; older ones have the median of steps."""
    if "median_tokens_per_second" in training:
        return training
    mean = training["tokens"] / training["seconds"] if training["seconds"] else training["tokens_per_second"]
    return {**training, "tokens_per_second": mean, "median_tokens_per_second": training["tokens_per_second"]}


def safe_name(name: str) -> str:
    """Return a name of only letters that mean nothing in Markdown, HTML, Python strings and YAML."""
    return re.sub(r"[^\w./-]+", "-", one_line(name).strip())


def facts_of_run(
    folder: Path, repository: str | None = None, checkpoints: list[dict[str, Any]] | None = None
) -> CardFacts:
    """Return the facts of a finished run; see `cards.render_model_card`."""
    run = read_run(folder)
    more = {"command": command_without_places(run["command"]), "buckets": public_buckets(folder)}
    run = {**run, **more, "training": _with_mean_speed(run["training"])}
    results = read_results(folder / RESULTS_NAME) if (folder / RESULTS_NAME).is_file() else None
    evaluations = read_evaluations(folder / METRICS_NAME)
    samples = read_samples(folder / SAMPLES_NAME)
    index = folder / CHECKPOINTS_NAME
    rows = read_checkpoints(index) if checkpoints is None else check_checkpoints(checkpoints, index)
    return CardFacts(
        origin="run",
        name=safe_name(repository or run["config"].get("hub_model_id") or folder.resolve().name),
        run=run,
        is_adapter=(folder / ADAPTER_CONFIG_NAME).is_file() and not (folder / "config.json").exists(),
        energy=_read_energy(folder / EMISSIONS_NAME),
        evaluations=thin(evaluations),
        num_evaluations=len(evaluations),
        results=results and replace(results, command=command_without_places(results.command)),
        checkpoints=rows,
        samples=samples,
        prompts=list(dict.fromkeys(sample["prompt"] for sample in samples)),
        files=frozenset(path.name for path in folder.iterdir() if rows or path != index),
        votes=read_votes(folder),
    )


def thin(rows: list[Any], most: int = MAX_EVALUATIONS) -> list[Any]:
    """Return at most so many rows at even distances, the first and the last among them."""
    if len(rows) <= most:
        return rows
    return [rows[round(place * (len(rows) - 1) / (most - 1))] for place in range(most)]


def data_table(sources: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the rows of the table of sources, their total, and the licences that restrict use."""
    rows = [
        {
            "name": name,
            "documents": source["documents"],
            "megabytes": None if source["bytes"] is None else source["bytes"] / 1e6,
            "tokens": source["tokens"],
            "licenses": ", ".join(map(str, source["licenses"])),
        }
        for name, source in sources.items()
    ]
    licenses = sorted({str(license) for source in sources.values() for license in source["licenses"]})
    columns = {column: [row[column] for row in rows] for column in ("documents", "megabytes", "tokens")}
    unknown = [column for column, values in columns.items() if None in values]
    return {
        "sources": rows,
        "total": {**{name: sum(values) for name, values in columns.items() if name not in unknown}, "unknown": unknown},
        "restricted": ", ".join(license for license in licenses if _RESTRICTED.search(license)),
    }


def _read_energy(path: Path) -> dict[str, Any] | None:
    """Return kwh, cpu_kwh, gpu_kwh, ram_kwh, kg, country, pue, hours, num_starts and incomplete (or None).

    Nothing was measured without a file, without a row, or when all rows are zero.

    Raises:
        InputError: see `read_energy`.
    """
    total, account = read_energy(path.parent)
    if total is None:
        return None
    if total.energy_kwh == 0:
        return None
    return {
        "kwh": total.energy_kwh,
        "cpu_kwh": total.cpu_kwh,
        "gpu_kwh": total.gpu_kwh,
        "ram_kwh": total.ram_kwh,
        "kg": total.emissions_kg,
        "country": place(total.country_iso_code, total.region),
        "pue": total.pue,
        "hours": total.duration_seconds / 3600,
        "num_starts": total.num_starts - num_speed_tests(path.parent),
        "incomplete": describe_incomplete(account),
    }


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
        is_begun = any(folder.glob("checkpoint-*")) or (folder / METRICS_NAME).exists()
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
    for name in ("step", "kwh", "kg_co2e") if run.get("branch") is not None else ():
        _check_key(path, run, ("branch", name), (int,) if name == "step" else _OPTIONAL_NUMBER)
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
    for where, row in _read_rows(path):
        _check_key(where, row, ("step",), (int,), fix=_LINE_FIX)
        for key in ("tokens", "loss", "bits_per_byte", "perplexity", "scored_tokens", "kwh", "kg_co2e"):
            if key in row:
                _check_key(where, row, (key,), _OPTIONAL_NUMBER, fix=_LINE_FIX)
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
    for where, row in _read_rows(path):
        for key, types in {"step": (int,), "prompt": (str,), "text": (str,)}.items():
            _check_key(where, row, (key,), types, fix=_LINE_FIX)
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
    for where, row in _read_rows(path):
        figures: tuple[str, ...]
        if "bits_per_byte" in row:
            figures, basis = ("bits_per_byte", "perplexity"), "scored_tokens"
        elif "preference_loss" in row:
            figures, basis = ("accuracy", "margin", "preference_loss"), "pairs"
        else:
            continue
        for key in ("step", "tokens", basis):
            _check_key(where, row, (key,), (int,), fix=_LINE_FIX)
        for key in (*figures, "kwh", "kg_co2e"):
            _check_key(where, row, (key,), _NUMBER, fix=_LINE_FIX)
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
    if any(isinstance(entry, dict) and "folder" in entry for entry in entries):
        return None  # came with a bucket's copy: its checkpoints have no branches that a card could name
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
