"""The models of one evaluation: a model, and with `checkpoints` those that its run passed through."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..checks import InputError, ensure
from ..hub_client import hub_errors
from ..model_files import ADAPTER_CONFIG_NAME
from ..published import PUBLISHED_MODELS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_CHECKPOINT, _BRANCH = re.compile(r"checkpoint-(\d+)"), re.compile(r"step-?(\d+)")
_COMPLETE = "complete.json"  # written last into a checkpoint
_METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class Stop:
    """One model on the way.

    Attributes:
        name_or_path: to load it from.
        revision: branch of a repository.
        step: of the checkpoint; None for the final model.
        tokens: seen by then.
        kwh: consumed by then.
    """

    name_or_path: str
    revision: str | None = None
    step: int | None = None
    tokens: int | None = None
    kwh: float | None = None


def list_stops(name_or_path: str, revision: str | None, checkpoints: bool) -> list[Stop]:
    """Return the models to evaluate, by step, the final one last.

    Raises:
        InputError: checkpoints are asked for and there are none.
    """
    final = Stop(name_or_path, revision)
    if not checkpoints:
        return [final]
    folder = Path(name_or_path).expanduser()
    stops = _folder_stops(folder) if folder.is_dir() else _branch_stops(name_or_path)
    ensure(
        stops,
        f"checkpoints: {name_or_path} has no complete checkpoint (checkpoint-N with {_COMPLETE}, or branches stepN). "
        "Leave checkpoints out to evaluate the final model.",
    )
    has_final = not folder.is_dir() or any((folder / name).is_file() for name in ("config.json", ADAPTER_CONFIG_NAME))
    return [*sorted(stops, key=lambda stop: stop.step or 0), *([final] if has_final else [])]


def _folder_stops(folder: Path) -> list[Stop]:
    seen = _progress(folder)
    stops = []
    for path in folder.glob("checkpoint-*"):
        match = _CHECKPOINT.fullmatch(path.name)
        if match and (path / _COMPLETE).is_file():
            step = int(match[1])
            stops.append(Stop(str(path), step=step, tokens=seen.get(step, (None, None))[0],
                              kwh=seen.get(step, (None, None))[1]))  # fmt: skip
    return stops


def _progress(folder: Path) -> dict[int, tuple[int | None, float | None]]:
    """Return tokens and kWh by step, of the run's metrics; a step between two records is interpolated."""
    path = folder / _METRICS
    if not path.is_file():
        return {}
    records: dict[int, tuple[int, float]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
            records[record["step"]] = (record["tokens"], record["kwh"])
        except (ValueError, KeyError):  # cut off by a kill, or a record of another kind
            continue
    steps = sorted(records)
    found: dict[int, tuple[int | None, float | None]] = {}
    for number in {int(match[1]) for path in folder.glob("checkpoint-*") if (match := _CHECKPOINT.match(path.name))}:
        before = max((step for step in steps if step <= number), default=None)
        after = min((step for step in steps if step >= number), default=None)
        if before is None or after is None:
            continue
        share = 0.0 if after == before else (number - before) / (after - before)
        (tokens, kwh), (more_tokens, more_kwh) = records[before], records[after]
        found[number] = (round(tokens + share * (more_tokens - tokens)), kwh + share * (more_kwh - kwh))
    return found


def _branch_stops(name_or_path: str) -> list[Stop]:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    repository = PUBLISHED_MODELS.get(name_or_path, name_or_path)
    try:
        branches = [branch.name for branch in HfApi().list_repo_refs(repository).branches]
    except HFValidationError as error:
        raise InputError(f"checkpoints: {repository} is neither a folder nor a Hub repository (owner/name).") from error
    except hub_errors() as error:
        raise InputError(
            f"checkpoints: the branches of {repository} cannot be listed: {type(error).__name__}. Check the name and "
            "the network, or give one branch with --revision."
        ) from error
    return [Stop(name_or_path, name, int(match[1])) for name in branches if (match := _BRANCH.fullmatch(name))]


def precision_name(model: "PreTrainedModel") -> str | None:
    """Return what a model computes in, or None if that is float32, which scores need not say."""
    name = str(model.dtype).removeprefix("torch.")
    return None if name == "float32" else name


def weights_fingerprint(model: "PreTrainedModel") -> str:
    """Return a hash that tells models apart, in a second: of every parameter's shape, sum and first values."""
    import hashlib

    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        values = parameter.detach().float()
        digest.update(f"{name}{tuple(values.shape)}{values.double().sum().item():.12e}".encode())
        digest.update(values.flatten()[:64].cpu().numpy().tobytes())
    return digest.hexdigest()
