"""A complete checkpoint as a branch of its own, and as a line of the list of checkpoints on main."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoints import Marker, read_marker
from ..checks import InputError
from .contents import CONFIG_NAME, ENVIRONMENT_NAME, WEIGHTS, model_files, present_files
from .run_files import METRICS_NAME, read_metrics
from .safety import inside
from .uploads import Upload, UploadFile

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
    step = marker.step
    files = model_files(run, folder, base_model)
    weights = {file.path: file.sha256() for file in files if WEIGHTS.fullmatch(file.path)}
    lines = read_metrics(run / METRICS_NAME, step)
    figures = _figures(marker, lines)
    revision = f"step{step}"
    entry = {"step": step, "branch": revision, **figures, "sha256": weights}
    files += [
        _json_file("emissions.json", {"step": step, **{key: figures[key] for key in ("tokens", "kwh", "kg_co2e")}}),
        UploadFile(METRICS_NAME, "".join(json.dumps(line) + "\n" for line in lines).encode()),
        *present_files(run, (CONFIG_NAME, ENVIRONMENT_NAME)),
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
