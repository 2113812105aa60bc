"""What of a run's folder is published, and under which revision: an allow-list, so that nothing else ever is."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoints import read_marker
from ..checks import InputError, ensure
from ..manifest import MANIFEST_NAME, sha256_file
from ..published import ADAPTER_CONFIG_NAME, BASE_RECORD_NAME, TOKENIZER_FILES
from .cards import CARD_NAME, render_model_card
from .refusals import check_repository
from .run_files import METRICS_NAME, SAMPLES_NAME, read_metrics, read_run
from .safety import inside
from .uploads import Upload, UploadFile, record_file

CHECKPOINTS_NAME = "checkpoints.json"
# What a checkpoint says of the training so far.
_FIGURES = ("tokens", "loss", "bits_per_byte", "kwh", "kg_co2e")
_ENVIRONMENT_NAME = "environment.json"
_WEIGHTS = re.compile(r"(model(-\d{5}-of-\d{5})?|adapter_model)\.safetensors")
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
    "config.yaml",
    MANIFEST_NAME,
    _ENVIRONMENT_NAME,
    METRICS_NAME,
    SAMPLES_NAME,
    "answers.jsonl",
    "loss.png",
    "ledger.jsonl",
    "emissions.csv",
    "emissions.json",
    "emissions.md",
    "emissions.png",
)
# What resuming needs: pickles, so only on request. `latest` and `global_step…` are DeepSpeed's.
_OPTIMIZER = re.compile(
    r"(optimizer|scheduler|scaler)\.pt|rng_state(_\d+)?\.pth|trainer_state\.json|latest|global_step\d+/[\w.-]+\.pt"
)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is to be published.

    Attributes:
        upload: its branch.
        entry: what `checkpoints.json` says of it.
    """

    upload: Upload
    entry: dict[str, Any]


def run_identity(run: Path) -> dict[str, Any]:
    """Return what tells this run from every other: all that decides its weights, but not its length.

    Raises:
        InputError: the folder holds no run, or its record of it is damaged.
    """
    path = run / _ENVIRONMENT_NAME
    ensure(run.is_dir(), f"RUN={run}: no such folder. Give the output_dir of `ttl pretrain`, `ttl sft` or `ttl dpo`.")
    ensure(path.is_file(), f"RUN={run}: is no run's folder, it has no {_ENVIRONMENT_NAME}. Give a run's output_dir.")
    try:
        return dict(json.loads(inside(run, path).read_text(encoding="utf-8"))["identity"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: is damaged ({error!r}). The run's command writes it again.") from error


def main_upload(run: Path, repository: str, entries: list[dict[str, Any]], base_model: str = "") -> Upload:
    """Return the upload of a finished run to main: model, tokenizer, card, records, and the list of checkpoints.

    Args:
        run: its folder.
        repository: `owner/name`; empty for a folder.
        entries: of the checkpoints that have branches, by step.
        base_model: for an adapter: the Hub repository of its base model.

    Raises:
        InputError: the run is not finished, lacks a file, or its weights are not those that the manifest names; a link
            leads out of the folder; an adapter of a base model that is on this machine alone.
    """
    records = _present(run, _RECORDS)  # first: the card quotes them, and none may be a link to elsewhere
    manifest = read_run(run)
    card = UploadFile(CARD_NAME, card_text(run, repository, entries).encode())
    files = [card, *model_files(run, run, base_model), *records]
    for name, expected in manifest["hashes"].items():
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


def card_text(run: Path, repository: str, entries: list[dict[str, Any]]) -> str:
    """Return the card for a repository."""
    return render_model_card(run, repository or None)


def _present(run: Path, names: tuple[str, ...]) -> list[UploadFile]:
    """Return those of the files that the run has; a link counts, so that one that leads out is refused."""
    found = [name for name in names if (run / name).is_file() or (run / name).is_symlink()]
    return [UploadFile(name, inside(run, run / name)) for name in found]


def _newest(records: list[dict[str, Any]], key: str) -> Any:
    """Return the last value of a key among records, or None: checkpoints of older versions do not say it themselves."""
    return next((record[key] for record in reversed(records) if key in record), None)


def model_files(run: Path, folder: Path, base_model: str = "") -> list[UploadFile]:
    """Return the files of a model, adapter and tokenizer in a folder, weights last.

    Args:
        run: the run's folder, which no link may leave.
        folder: the run's or a checkpoint's.
        base_model: see `main_upload`.

    Raises:
        InputError: see `main_upload`.
    """
    names = sorted(path.name for path in folder.iterdir() if path.name in _MODEL_NAMES or _WEIGHTS.fullmatch(path.name))
    names.sort(key=lambda name: bool(_WEIGHTS.fullmatch(name)))
    files = [UploadFile(name, inside(run, folder / name)) for name in names]
    ensure(any(_WEIGHTS.fullmatch(name) for name in names), f"{folder}: holds no weights in safetensors.")
    ensure({"config.json", ADAPTER_CONFIG_NAME} & set(names), f"{folder}: holds no config.json.")
    ensure(set(TOKENIZER_FILES) & set(names), f"{folder}: holds no tokenizer, so nobody could use the model.")
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
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file.source}: is damaged ({error!r}). Copy the adapter again.") from error
    if not base_model:
        ensure(
            base.count("/") == 1 and not base.startswith((".", "~", "/")) and not Path(base).exists(),
            f"{folder}: is an adapter of {base}, a folder of this machine that nobody else can load. Publish that "
            "model first and name it with --base_model owner/name; or leave checkpoints out: --checkpoints false",
        )
        return file
    check_repository(base_model, "base_model")
    text = json.dumps({**content, key: base_model}, ensure_ascii=False, indent=2)
    return UploadFile(file.path, (text + "\n").encode())


def checkpoint_revision(step: int) -> str:
    """Return the name of a checkpoint's branch."""
    return f"step{step}"


def read_checkpoint(
    run: Path, folder: Path, repository: str, base_model: str = "", optimizer_state: bool = False
) -> Checkpoint:
    """Return the upload of a complete checkpoint to its branch, and its entry in the list of checkpoints.

    Args:
        run: the run's folder.
        folder: the checkpoint's.
        repository: `owner/name`.
        base_model: see `main_upload`.
        optimizer_state: add what resuming needs; these files are pickles.

    Raises:
        InputError: see `main_upload`.
    """
    marker = read_marker(folder)
    step = int(marker["step"])
    files = model_files(run, folder, base_model)
    weights = {file.path: file.sha256() for file in files if _WEIGHTS.fullmatch(file.path)}
    lines = read_metrics(run / METRICS_NAME, step)
    figures = {key: marker.get(key, _newest(lines, key)) for key in _FIGURES}
    revision = checkpoint_revision(step)
    entry = {"step": step, "revision": revision, **figures, "sha256": weights}
    files += [
        _json_file("emissions.json", {"step": step, **{key: figures[key] for key in ("tokens", "kwh", "kg_co2e")}}),
        UploadFile(METRICS_NAME, "".join(json.dumps(line) + "\n" for line in lines).encode()),
        *_present(run, ("config.yaml", _ENVIRONMENT_NAME)),
    ]
    state = _optimizer_files(run, folder) if optimizer_state else []
    upload = Upload(
        repository,
        "model",
        revision,
        (*files, *state),
        f"checkpoint of step {step}",
        fixed=tuple(weights),
        pickles=tuple(file.path for file in state),
    )
    return Checkpoint(upload, entry)


def _json_file(path: str, content: dict[str, Any]) -> UploadFile:
    return UploadFile(path, (json.dumps(content, indent=1) + "\n").encode())


def _optimizer_files(run: Path, folder: Path) -> list[UploadFile]:
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    return [UploadFile(name, inside(run, folder / name)) for name in names if _OPTIMIZER.fullmatch(name)]


def check_distinct(entries: list[dict[str, Any]]) -> None:
    """Refuse checkpoints of different steps with the same weights: one of them is not what its name says.

    Two branches of Pythia served the same weights for a long time (EleutherAI/pythia, issue 205).

    Raises:
        InputError: there are such; the message names both and the hash.
    """
    seen: dict[str, int] = {}
    for entry in entries:
        hashes = json.dumps(entry["sha256"], sort_keys=True)
        if hashes in seen:
            name, digest = next(iter(entry["sha256"].items()))
            raise InputError(
                f"checkpoints: steps {seen[hashes]} and {entry['step']} have the same weights ({name}, sha256 "
                f"{digest}), so one of the branches would not hold what its name says. Delete the wrong one."
            )
        seen[hashes] = entry["step"]


def merge_entries(*lists: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the entries of several lists by step; a later list wins."""
    by_step = {entry["step"]: entry for entries in lists for entry in entries}
    return [by_step[step] for step in sorted(by_step)]
