"""Contents of a publication: which files of a run, of a checkpoint and of a corpus are sent, and no others."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..checkpointing.checkpoints import FileRecord, Marker, marker_text, read_marker
from ..checks import InputError, ensure, hub_license
from ..corpus.passport import render_markdown
from ..corpus.provenance import PASSPORT_NAME, describe_corpus, read_passport
from ..corpus.text_statistics import PEOPLES
from ..data.input_files import list_data_files
from ..energy.emissions import emission_files
from ..energy.ledger import ledger_files
from ..model_files import ADAPTER_CONFIG_NAME, TOKENIZER_FILES
from ..stage_folder import (
    ANSWERS_NAME,
    BASE_RECORD_NAME,
    BEGUN_NAME,
    CARD_NAME,
    CHECKPOINTS_NAME,
    CONFIG_NAME,
    DECAY_NOW_NAME,
    ENERGY_JSON_NAME,
    ENERGY_MARKDOWN_NAME,
    ENERGY_PLOT_NAME,
    ENVIRONMENT_NAME,
    MANIFEST_NAME,
    MARKER_NAME,
    METRICS_NAME,
    PEOPLE_NAME,
    PLOT_NAME,
    RESULTS_NAME,
    SAMPLES_NAME,
    SPEED_TEST_NAME,
    TRACKERS_NAME,
    find_manifest,
    sha256_file,
    without_place,
)
from ..tokenizer.files import SENTENCEPIECE_NAME
from .card import render_model_card
from .facts import card_row, read_metrics, read_run
from .safety import Upload, UploadFile, check_repository, inside, record_file
from .scores import eval_result_files
from .wording import record_without_places, without_places

WEIGHTS = re.compile(r"(model(-\d{5}-of-\d{5})?|adapter_model)\.safetensors")
# What `from_pretrained` reads: of a model, an adapter, a tokenizer.
_MODEL_NAMES = {
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    ADAPTER_CONFIG_NAME,
    BASE_RECORD_NAME,
    *TOKENIZER_FILES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template.jinja",
}
# What says how the model was made, beside the card.
_RECORDS = (
    CONFIG_NAME,
    MANIFEST_NAME,
    ENVIRONMENT_NAME,
    METRICS_NAME,
    SAMPLES_NAME,
    ANSWERS_NAME,
    SPEED_TEST_NAME,
    RESULTS_NAME,
    PEOPLE_NAME,
    PLOT_NAME,
    ENERGY_JSON_NAME,
    ENERGY_MARKDOWN_NAME,
    ENERGY_PLOT_NAME,
)
# Of them, those that hold commands and folders as they were typed.
_NAMING_PLACES = {CONFIG_NAME, MANIFEST_NAME, ENVIRONMENT_NAME, SPEED_TEST_NAME, RESULTS_NAME, ENERGY_JSON_NAME}

# What resuming needs: large, and partly pickles, so only on request. `latest` and `global_step…` are DeepSpeed's.
_OPTIMIZER = re.compile(
    r"(optimizer|scheduler|scaler)\.pt|optimizer/(\d+\.safetensors|state\.json)|rng_state(_\d+)?\.pth|trainer_state\.json"
    r"|latest|global_step\d+/[\w.-]+\.pt"
)
# What a run's folder needs beside a checkpoint for the training to go on, with the files of its energy. Bad steps are
# not among them: their file quotes training texts, and what the run needs of them is in environment.json.
_RESUMED = (CONFIG_NAME, ENVIRONMENT_NAME, METRICS_NAME, SAMPLES_NAME, SPEED_TEST_NAME, DECAY_NOW_NAME, TRACKERS_NAME)
_MOST_REASONS = 3  # of a source's drops that its line in the card names


def run_identity(run: Path) -> dict[str, Any]:
    """Return what tells this run from every other: all that decides its weights, but not its length.

    Raises:
        InputError: the folder holds no run, or its record of it is damaged.
    """
    path = run / ENVIRONMENT_NAME
    ensure(run.is_dir(), f"RUN={run}: no such folder. Give the output_dir of `ttl pretrain`, `ttl sft` or `ttl dpo`.")
    ensure(path.is_file(), f"RUN={run}: is no run's folder, it has no {ENVIRONMENT_NAME}. Give a run's output_dir.")
    inside(run, path)
    try:
        return without_places(dict(json.loads(path.read_text(encoding="utf-8"))["identity"]))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: is damaged ({error!r}). The run's command writes it again.") from error


def main_upload(
    run: Path, repository: str, entries: list[dict[str, Any]], base_model: str = "", language: str | None = None
) -> Upload:
    """Return the upload of a finished run to main: model, tokenizer, card, records, and the list of checkpoints.

    Args:
        run: its folder.
        repository: `owner/name`; empty for a folder.
        entries: of the checkpoints that have branches, by step.
        base_model: for an adapter: the Hub repository of its base model.
        language: of the card, see `render_model_card`.

    Raises:
        InputError: the run is not finished, lacks a file, or its weights are not those that the manifest names; a link
            leads out of the folder; an adapter of a base model that is on this machine alone.
    """
    # Of each machine, and what codecarbon moved aside: the report adds them up.
    measured = [path.name for path in (*ledger_files(run), *emission_files(run))]
    # First: the card quotes them, and none may be a link to elsewhere.
    records = present_files(run, (*_RECORDS, *measured))
    manifest = read_run(run)
    card = render_model_card(run, repository or None, language, [card_row(entry) for entry in entries])
    files = [UploadFile(CARD_NAME, card.encode()), *model_files(run, run, base_model), *records]
    files += [UploadFile(path, content) for path, content in eval_result_files(run).items()]
    weights = [file.path for file in files if WEIGHTS.fullmatch(file.path)]
    for name, expected in _hashes_of(run, manifest["hashes"], weights).items():
        found = sha256_file(run / name) if (run / name).is_file() else "no such file"
        ensure(
            found == expected,
            f"{run / name}: has changed since the run ended (sha256 {found}, {MANIFEST_NAME} says {expected}). Restore "
            "it, or train again into a new folder.",
        )
    names = [file.path for file in files]
    record = record_file(CHECKPOINTS_NAME, run_identity(run), names, {"checkpoints": entries})
    message = f"{manifest['stage']}: {manifest['training']['steps']} steps"
    return Upload(repository, "model", "main", (*files, record), message, record=CHECKPOINTS_NAME)


def _hashes_of(run: Path, hashes: dict[str, Any], weights: list[str]) -> dict[str, str]:
    """Return the recorded hashes of a run's weights.

    Args:
        run: its folder.
        hashes: as `run.json` has them.
        weights: names of the files that are to be published.

    Raises:
        InputError: a file has none, or a name or a hash is none.
    """
    where = f"{run / MANIFEST_NAME}: hashes"
    fix = "Restore the file from a copy; what nobody can verify is not published."
    lacking = [name for name in weights if name not in hashes]
    ensure(not lacking, f"{where} has no sha256 of {', '.join(lacking)}. {fix}")
    for name, value in hashes.items():
        ensure(WEIGHTS.fullmatch(name), f"{where}: {name!r} is no file of weights. {fix}")
        is_hash = isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value)
        ensure(is_hash, f"{where}: {name}={value!r} is no sha256. {fix}")
    return hashes


def index_upload(run: Path, repository: str, entries: list[dict[str, Any]], kept: list[str]) -> Upload:
    """Return the upload that only brings main's list of checkpoints up to date while the run goes on.

    Args:
        run: its folder.
        repository: `owner/name`.
        entries: of the checkpoints that have branches, by step.
        kept: files on main of an earlier, shorter end of the same run; they stay.
    """
    record = record_file(CHECKPOINTS_NAME, run_identity(run), kept, {"checkpoints": entries})
    message = f"checkpoints up to step {entries[-1]['step']}" if entries else "checkpoints will follow"
    return Upload(repository, "model", "main", (record,), message, record=CHECKPOINTS_NAME)


def present_files(run: Path, names: tuple[str, ...]) -> list[UploadFile]:
    """Return those of the files that the run has; a link counts, so that one that leads out is refused.

    Raises:
        InputError: such a link, or a damaged record.
    """
    found = [name for name in names if (run / name).is_file() or (run / name).is_symlink()]
    files = [UploadFile(name, inside(run, run / name)) for name in found]
    return [
        UploadFile(file.path, record_without_places(run / file.path)) if file.path in _NAMING_PLACES else file
        for file in files
    ]


def model_files(run: Path, folder: Path, base_model: str = "") -> list[UploadFile]:
    """Return the files of a model, adapter and tokenizer in a folder, weights last.

    Args:
        run: the run's folder, which no link may leave.
        folder: the run's or a checkpoint's.
        base_model: see `main_upload`.

    Raises:
        InputError: see `main_upload`.
    """
    names = sorted(path.name for path in folder.iterdir() if path.name in _MODEL_NAMES or WEIGHTS.fullmatch(path.name))
    names.sort(key=lambda name: bool(WEIGHTS.fullmatch(name)))
    files = [UploadFile(name, inside(run, folder / name)) for name in names]
    ensure(any(WEIGHTS.fullmatch(name) for name in names), f"{folder}: holds no weights in safetensors.")
    ensure({"config.json", ADAPTER_CONFIG_NAME} & set(names), f"{folder}: holds no config.json.")
    # tokenizer.model lies beside tokenizer.json for other programs, and never stands for it.
    ensure(
        set(TOKENIZER_FILES) & set(names) - {SENTENCEPIECE_NAME},
        f"{folder}: holds no tokenizer, so nobody could use the model.",
    )
    if ADAPTER_CONFIG_NAME not in names:
        return files
    return [_with_base(file, folder, base_model) for file in files]


def _with_base(file: UploadFile, folder: Path, base_model: str) -> UploadFile:
    """Return a file of an adapter, naming the base model's repository instead of a folder of this machine."""
    key = {ADAPTER_CONFIG_NAME: "base_model_name_or_path", BASE_RECORD_NAME: "base_model"}.get(file.path)
    if key is None:
        return file
    assert isinstance(file.source, Path)
    try:
        content = json.loads(file.source.read_text(encoding="utf-8"))
        base = str(content[key])
        record = folder / BASE_RECORD_NAME
        is_local = record.is_file() and json.loads(record.read_text(encoding="utf-8")).get("base_is_local")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{file.source} or {BASE_RECORD_NAME}: is damaged ({error!r}). Copy the adapter again."
        ) from error
    if not base_model:
        ensure(
            not is_local and base.count("/") == 1 and not base.startswith((".", "~", "/")) and not Path(base).exists(),
            f"{folder}: is an adapter of {base}, a folder of this machine that nobody else can load. Publish that "
            "model first and name it with --base_model owner/name; or leave checkpoints out: --checkpoints false",
        )
        return file
    check_repository(base_model, "base_model")
    there = {"base_is_local": False} if "base_is_local" in content else {}
    text = json.dumps({**content, key: base_model, **there}, ensure_ascii=False, indent=2)
    return UploadFile(file.path, (text + "\n").encode())


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is to be published.

    Attributes:
        folder: it lies in.
        upload: its branch.
        entry: what `checkpoints.json` says of it.
    """

    folder: Path
    upload: Upload
    entry: dict[str, Any]


def read_checkpoint(
    run: Path, folder: Path, repository: str, base_model: str = "", with_optimizer: bool = False
) -> Checkpoint:
    """Return the upload of a complete checkpoint of a run to its branch, and its entry in the list of checkpoints.

    Raises:
        InputError: see `main_upload`.
    """
    marker = read_marker(folder)
    step = marker.step
    files = model_files(run, folder, base_model)
    weights = {file.path: file.sha256() for file in files if WEIGHTS.fullmatch(file.path)}
    lines = read_metrics(run / METRICS_NAME, step)
    figures = _figures(marker, lines)
    revision = f"step{step}"
    entry = {"step": step, "branch": revision, **figures, "sha256": weights}
    consumed = {"step": step, **{key: figures[key] for key in ("tokens", "kwh", "kg_co2e")}}
    files += [
        UploadFile(ENERGY_JSON_NAME, (json.dumps(consumed, indent=1) + "\n").encode()),
        UploadFile(METRICS_NAME, "".join(json.dumps(line) + "\n" for line in lines).encode()),
        *present_files(run, (CONFIG_NAME, ENVIRONMENT_NAME)),
    ]
    state = _optimizer_files(run, folder) if with_optimizer else []
    upload = Upload(
        repository,
        "model",
        revision,
        (*files, *state),
        f"checkpoint of step {step}",
        fixed=tuple(weights),
        pickles=tuple(file.path for file in state),
    )
    return Checkpoint(folder, upload, entry)


def _figures(marker: Marker, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what a checkpoint says of the training so far; markers of earlier versions leave it to metrics.jsonl."""
    newest: dict[str, Any] = {}
    for record in records:
        newest |= record
    scored = [
        record["bits_per_byte"] for record in records if record["step"] == marker.step and "bits_per_byte" in record
    ]
    found = {
        "tokens": marker.tokens,
        "loss": None,
        "bits_per_byte": marker.bits_per_byte or (scored[-1] if scored else None),
        "kwh": marker.kwh,
        "kg_co2e": marker.kg_co2e,
    }
    return {key: newest.get(key) if value is None and key != "bits_per_byte" else value for key, value in found.items()}


def _optimizer_files(run: Path, folder: Path) -> list[UploadFile]:
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    return [UploadFile(name, inside(run, folder / name)) for name in names if _OPTIMIZER.fullmatch(name)]


def resumable_upload(checkpoint: Checkpoint) -> Upload:
    """Return the upload of a checkpoint with a marker of exactly its files, if it has its optimizer state.

    `training_args.bin` is not among them: transformers writes that pickle and never reads it. `begun.json` goes with
    the files, so that the run knows a checkpoint whose upload was broken off as its own and deletes it in time.
    """
    upload = checkpoint.upload
    if not upload.pickles:
        return upload
    marker = read_marker(checkpoint.folder)
    known = marker.files or {}
    files = {
        file.path: known[file.path]
        if file.source == checkpoint.folder / file.path and file.path in known
        else FileRecord(file.size_bytes, file.sha256())
        for file in upload.files
    }
    begun = UploadFile(BEGUN_NAME, (json.dumps({"created": marker.created}) + "\n").encode())
    whole = UploadFile(MARKER_NAME, marker_text(replace(marker, files=files)).encode())
    return replace(upload, files=(begun, *upload.files, whole), last=(MARKER_NAME,))


def run_records(run: Path) -> list[UploadFile]:
    """Return the records of a run that its training needs to go on, each as it is now: more may be written meanwhile.

    Ledgers are read before codecarbon's files, which are written first and may have more (see `energy.ledger`).
    """
    found = []
    for file in present_files(run, (*_RESUMED, *(path.name for path in (*ledger_files(run), *emission_files(run))))):
        content = file.source if isinstance(file.source, bytes) else file.source.read_bytes()
        if file.path.endswith(".jsonl") or ".csv" in file.path:
            content = content[: content.rfind(b"\n") + 1]  # whole lines
        if content or file.path == DECAY_NOW_NAME:  # an empty one asks for the decay
            found.append(UploadFile(file.path, content or b"\n"))
    return found


def corpus_inputs(folder: Path) -> tuple[list[str], dict[str, Any], dict[str, Any]]:
    """Return the inputs of a folder of `ttl corpus`, the settings to read them with, and facts for the card.

    Raises:
        InputError: a file is a link to elsewhere, or not the one that the passport describes.
    """
    passport = read_passport(folder)
    ensure(passport is not None, f"source={folder}: has no {PASSPORT_NAME}. Run the same `ttl corpus` again first.")
    assert passport is not None
    splits = {split: folder / split for split in ("train", "validation") if (folder / split).is_dir()}
    files = [path for place in splits.values() for path in list_data_files(place, (".parquet",))]
    found = {str(path.relative_to(folder)): sha256_file(inside(folder, path)) for path in files}
    ensure(
        found == passport["files"],
        f"source={folder}: its parquet files are not those that {PASSPORT_NAME} describes. Run `ttl corpus` again, or "
        "publish the files themselves.",
    )
    settings: dict[str, Any] = {"validation_fraction": 0.0}
    if "validation" in splits:
        settings["validation_inputs"] = [str(splits["validation"])]
    facts = {"passport": passport_facts(folder, passport), "built": find_manifest(folder)}
    return [str(splits["train"])], settings, facts


def passport_facts(folder: Path, passport: dict[str, Any]) -> dict[str, Any]:
    """Return what a card tells of a passport.

    Returns:
        `describe_corpus`, with `read`, `kept`, `megabytes_read` and most frequent `reasons` of each source; the shares
        of registers and topics in the tokens; professions and groups by number of mentions; steps that were left out;
        `public`, the passport without places of the machine that made it.
    """
    facts, whole = describe_corpus(folder, passport), passport["whole"]
    for name, source in passport["sources"].items():
        read = source["steps"].get("read", {"documents_in": 0, "bytes_in": 0})
        drops = [(number, step, reason) for step, count in source["steps"].items()
                 for reason, number in count["reasons"].items()]  # fmt: skip
        facts["sources"].setdefault(name, {key: source[key] for key in ("license", "url", "revision", "register")})
        facts["sources"][name] |= {
            "read": read["documents_in"], "megabytes_read": read["bytes_in"] / 1e6,
            "kept": source["statistics"]["documents"], "megabytes": source["statistics"]["bytes"] / 1e6,
            "reasons": sorted(drops, reverse=True)[:_MOST_REASONS],
        }  # fmt: skip
    total = max(1, whole["tokens"])
    balance = {kind: sorted(((100 * tokens / total, name) for name, tokens in counts.items()), reverse=True)
               for kind, counts in (("registers", passport["registers"]), ("topics", whole["topics"]))}  # fmt: skip
    professions = sorted(whole["professions"].items(), key=lambda item: -sum(item[1].values()))
    groups = sorted(whole["groups"].items(), key=lambda item: -item[1])
    public = {**passport, "sources": {
        name: {**source, "inputs": list(map(without_place, source["inputs"]))} for name, source in
        passport["sources"].items()
    }}  # fmt: skip
    return {
        **facts, **balance, "terms": passport["licence"]["terms"], "left_out": passport["left_out"],
        "professions": [(name, *(counts.get(who, 0) for who in ("women", "men", "not said")))
                        for name, counts in professions],
        "groups": [(name, name in PEOPLES, number, whole["group_documents"].get(name, 0),
                    whole["group_toxic"].get(name, 0)) for name, number in groups],
        "public": public,
    }  # fmt: skip


def license_of_whole(facts: dict[str, Any]) -> dict[str, Any]:
    """Return the key of a card's metadata for a corpus that can be given under one of the Hub's licences, else none."""
    passport = facts.get("passport")
    name = hub_license(passport["licence"]) if passport else None
    return {"license": name} if name not in (None, "other", "unknown") else {}


def passport_files(facts: dict[str, Any]) -> list[UploadFile]:
    """Return the passport as it is published: numbers and tables.

    The page stays at home: it shows documents that were dropped, as toxic or before personal data was masked.
    """
    if "passport" not in facts:
        return []
    public = facts["passport"]["public"]
    return [UploadFile(PASSPORT_NAME, json.dumps(public, ensure_ascii=False, indent=2).encode()),
            UploadFile("passport.md", render_markdown(public).encode())]  # fmt: skip
