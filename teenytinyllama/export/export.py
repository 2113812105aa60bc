"""`ttl export MODEL`: a model in another form, checked, measured beside its size, with a card.

Everything is written into a folder beside the new one, which then takes its place as a whole: a failure leaves nothing.
"""

import importlib.util
import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from ..checks import RunFailedError, counted, ensure, ensure_disk_space, format_bytes, near_name
from ..disk import scratch_folder
from ..energy.emissions import GRID_KEYS, GridSettings
from ..energy.meter import check_energy
from ..energy.recorder import StageMeter
from ..model_files import PUBLISHED_MODELS, is_local, locate
from ..publishing.safety import check_repository
from ..quantised import ensure_not_quantised
from ..stage_folder import CARD_NAME, EMISSIONS_NAME, LEDGER_NAME, StageFolder, sha256_file, sha256_json
from .export_card import QUALITY_PLOT_NAME, ollama_files, render_export_card
from .gguf_file import (
    TYPES,
    Vocabulary,
    check_gguf,
    count_types,
    estimate_bytes,
    read_vocabulary,
    write_gguf,
)
from .weights import DEFAULT_SHARD_SIZE, DTYPES, check_int8, check_safetensors, write_int8, write_safetensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from .file_quality import Yardstick

_TYPES: dict[str, tuple[str, ...]] = {"gguf": tuple(TYPES), "int8": ("int8",), "safetensors": tuple(DTYPES)}
_DEFAULT_TYPES = {"gguf": "q8_0", "int8": "int8", "safetensors": "bf16"}
# Largest difference of a logit that float16 may make of float32, as a share of the largest logit. The least bit of a
# float16 is 2^-11 of its value; a wrong conversion is off by the logits' own size.
_MOST_F16_DIFFERENCE = 0.02
_STAGE = re.compile(r"base|chat|dpo|model|merged|checkpoint-\d+")  # names that say nothing of whose they are
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


@dataclass
class ExportConfig(GridSettings):
    """`ttl export MODEL`: the form, its types, and what is said of them."""

    model_name_or_path: str = field(
        default="", metadata={"help": "folder (a run, a checkpoint, an adapter), Hub repository or short name"}
    )
    format: Literal["gguf", "int8", "safetensors"] = field(
        default="gguf",
        metadata={"help": "gguf: llama.cpp, Ollama; int8: transformers with torchao; safetensors: transformers, vLLM"},
    )
    type: str | None = field(
        default=None,
        metadata={"help": "of gguf: f16, q8_0, q4_0, q4_k_m, or several with commas (default q8_0); of safetensors: "
                          "bf16 (default), f16, f32"},
    )  # fmt: skip
    output_dir: str | None = field(
        default=None, metadata={"help": "new folder for the files; default MODEL-gguf, MODEL-int8, MODEL-bf16"}
    )
    name: str | None = field(default=None, metadata={"help": "what the files are called; default the model's name"})
    max_shard_size: str = field(
        default=DEFAULT_SHARD_SIZE, metadata={"help": "of safetensors: largest file of weights"}
    )
    repository: str | None = field(
        default=None, metadata={"help": "owner/name of the model on the Hub, which the card names as its base"}
    )
    license: str | None = field(default=None, metadata={"help": "of the weights; default what the model's card says"})
    measure: bool = field(default=True, metadata={"help": "measure each file beside its size, where there is text"})
    held_out: list[str] | None = field(
        default=None,
        metadata={"help": "text to measure with: a packed folder, or files, folders, `sample`; default the packed "
                          "folder that the run was trained on, where it is still there"},
    )  # fmt: skip
    held_out_max_tokens: int = field(default=20_000, metadata={"help": "tokens of it that are scored"})
    data_dir: str | None = field(
        default=None, metadata={"help": "folder with files of the suite signal; null: cloze of the held-out text alone"}
    )
    revision: str | None = field(default=None, metadata={"help": "branch, tag or commit of a Hub repository"})
    base_model: str | None = field(
        default=None, metadata={"help": "for an adapter: its base model, if it is not where it was"}
    )

    def __post_init__(self) -> None:
        """Refuse what cannot be exported, before anything is loaded.

        Raises:
            InputError: no model, an unknown type, a name that is no file's, or a number out of range.
        """
        ensure(self.model_name_or_path, "model_name_or_path: missing. Write ttl export MODEL.")
        known = _TYPES[self.format]
        for kind in self.types:
            ensure(
                kind in known,
                f"type={kind}: format={self.format} has {', '.join(known)}.{near_name(kind, known)}",
            )
        ensure(
            len(self.types) == 1 or self.format == "gguf",
            f"type={self.type}: several types at once are for gguf. Give one.",
        )
        ensure(
            self.name is None or _NAME.fullmatch(self.name),
            f"name={self.name}: must begin with a letter or a digit and hold only letters, digits, '.', '_' and '-'.",
        )
        ensure(self.held_out_max_tokens >= 1, f"held_out_max_tokens={self.held_out_max_tokens}: must be at least 1.")
        if self.repository is not None:
            check_repository(self.repository, "repository")
        check_energy(self)

    @property
    def types(self) -> list[str]:
        """Return the types that are asked for, each once."""
        given = (self.type or _DEFAULT_TYPES[self.format]).lower().replace(" ", "")
        return list(dict.fromkeys(part for part in given.split(",") if part)) or [given]

    @property
    def model_name(self) -> str:
        """Return what the model is called, for its files.

        That is `name`, or the last part of its folder or repository; behind the folder's own for a stage of a run, so
        that the files of `outputs/160m/chat` are called `160m-chat`.
        """
        found = PUBLISHED_MODELS.get(self.model_name_or_path, self.model_name_or_path).rstrip("/")
        last = found.rsplit("/", 1)[-1]
        if is_local(found):
            *_, above, last = ("", *Path(found).expanduser().resolve().parts)
            last = f"{above}-{last}" if _STAGE.fullmatch(last) else last
        return self.name or re.sub(r"[^\w.-]+", "-", last).strip("-.") or "model"

    @property
    def folder(self) -> Path:
        """Return the folder for the files."""
        if self.output_dir:
            return Path(self.output_dir).expanduser()
        suffix = {"gguf": "gguf", "int8": "int8"}.get(self.format, self.types[0])
        if is_local(self.model_name_or_path):
            place = Path(self.model_name_or_path).expanduser().resolve()
            return place.with_name(f"{place.name}-{suffix}")
        return Path(f"{self.model_name}-{suffix}")


@dataclass(frozen=True)
class _Job:
    """An export whose parts have all been checked.

    Attributes:
        config: of the user.
        model: in float32.
        tokenizer: of the model.
        vocabulary: the tokenizer as a GGUF file holds it; None: no GGUF is asked for.
        yardstick: what the files are measured with, or None.
        license: of the weights, if it is known.
    """

    config: ExportConfig
    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    vocabulary: Vocabulary | None
    yardstick: "Yardstick | None"
    license: str | None


def run_export(config: ExportConfig) -> Path:
    """Export a model, or find that the folder holds this export already, and return the folder.

    Raises:
        InputError: a model that cannot be read or written in this form, no room, or a folder that holds something else.
        RunFailedError: llama.cpp reads what was written otherwise than transformers the model.
    """
    from ..models import from_pretrained, weights_identity

    folder, stage = config.folder, StageFolder(config.folder, "export", "files")
    model, tokenizer = from_pretrained(config.model_name_or_path, config.revision, config.base_model)
    ensure_not_quantised("model_name_or_path", config.model_name_or_path, model.config)
    said = {name: value for name, value in asdict(config).items() if name not in {"output_dir", *GRID_KEYS}}
    own = weights_identity(config.model_name_or_path, config.revision)
    plan_sha256 = sha256_json({**said, "weights": own})
    if stage.is_done(plan_sha256):
        print(f"{folder} holds this export already")
        return folder
    job = _make_job(config, model, tokenizer)
    place = folder.resolve()
    place.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(place.parent) as scratch:
        with StageMeter(scratch, config) as meter:
            facts = _write_files(job, scratch, meter)
        content = {
            "plan_sha256": plan_sha256, "config": asdict(config), "format": config.format, "name": config.model_name,
            "model": config.repository or (None if is_local(config.model_name_or_path) else config.model_name_or_path),
            "license": job.license, "parameters": model.num_parameters(),
            "context": model.config.max_position_embeddings, "is_chat": bool(tokenizer.chat_template), **facts,
        }  # fmt: skip
        (scratch / CARD_NAME).write_text(render_export_card(content), encoding="utf-8")
        StageFolder(scratch, "export", "files").finish(content)
        os.replace(scratch, place)  # of another folder it takes the place only if that is empty
    return folder


def _make_job(config: ExportConfig, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> _Job:
    """Return an export whose parts can all be written.

    Raises:
        InputError: see `run_export`.
    """
    vocabulary, needed = None, (4 if config.types[0] == "f32" else 2) * model.num_parameters()
    if config.format == "int8":
        check_int8(model, config.model_name_or_path)
    elif config.format == "safetensors":
        check_safetensors(model, config.model_name_or_path, config.types[0], config.max_shard_size)
    else:
        check_gguf(config.model_name_or_path, model, tokenizer, config.types)
        vocabulary = read_vocabulary(config.model_name_or_path, tokenizer)
        needed = sum(estimate_bytes(model, TYPES[kind]) for kind in config.types)
    ensure_disk_space("output_dir", config.folder, needed, "Free some, or choose another folder.")
    yardstick = _yardstick(config, model, tokenizer)
    if vocabulary:
        print(f"tokenizer  as llama.cpp's {vocabulary.model}, {len(vocabulary.pieces):,} entries", flush=True)
    return _Job(config, model.float(), tokenizer, vocabulary, yardstick, config.license or _license_of(config))


def _yardstick(
    config: ExportConfig, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase"
) -> "Yardstick | None":
    """Return what the files are measured with, or None."""
    from .file_quality import make_yardstick

    if not config.measure:
        return None
    context = min(int(model.config.max_position_embeddings), 2048)
    place = Path(config.model_name_or_path).expanduser()
    found = make_yardstick(place, tokenizer, context, config.held_out, config.held_out_max_tokens, config.data_dir)
    if found is None:
        print("quality    not measured: no held-out text. Give held_out: a packed folder, or text files", flush=True)
    return found


def _write_files(job: _Job, folder: Path, meter: StageMeter) -> dict[str, Any]:
    """Write, check and measure the files of an export, and return what is known of them."""
    from .file_quality import draw_quality, measure_model, measure_speed, speed_prompt

    yardstick = job.yardstick
    reference = {**measure_model(job.model, yardstick), "held_out": yardstick.held_out} if yardstick else None
    prompt = speed_prompt(job.tokenizer, int(job.model.config.max_position_embeddings)) if yardstick else []
    if reference:
        own = {"revision": job.config.revision, "base_model": job.config.base_model}
        reference["speed"] = measure_speed(job.config.model_name_or_path, prompt, **own)
        print(f"model      {reference['bits_per_byte']:.4f} bits per byte in transformers, float32", flush=True)
    rows = []
    for kind in job.config.types:
        row = _write_gguf(job, folder, kind) if job.vocabulary else _write_weights(job, folder, kind)
        if "bits_per_byte" in row:  # without llama.cpp nothing reads a GGUF file
            row["speed"] = measure_speed(str(folder / row["path"] if job.vocabulary else folder), prompt)
        rows.append(row)
        meter.tick()
    if all("bits_per_byte" in row for row in rows):
        draw_quality(rows, reference).savefig(folder / QUALITY_PLOT_NAME, dpi=120)
    for name, text in ollama_files(rows[0]["path"], job.model, job.tokenizer).items() if job.vocabulary else ():
        (folder / name).write_text(text, encoding="utf-8")
    return {"files": rows, "reference": reference}


def _write_gguf(job: _Job, folder: Path, kind: str) -> dict[str, Any]:
    """Write one GGUF file, and return what is known of it.

    Raises:
        InputError: it would be called 4-bit and be no smaller than one of 8 bits.
        RunFailedError: llama.cpp reads it otherwise than transformers the model.
    """
    from .file_quality import compare_in_llama_cpp, measure_gguf

    assert job.vocabulary is not None
    path = folder / f"{job.config.model_name}-{TYPES[kind].suffix}.gguf"
    write_gguf(job.model, job.vocabulary, path, TYPES[kind], _metadata(job))
    tensors, size = count_types(path), path.stat().st_size
    _ensure_smaller(kind, size, job.model)
    row = {"path": path.name, "type": kind, "bytes": size, "sha256": sha256_file(path), "tensors": tensors}
    print(f"{kind:10} {format_bytes(size)}: {', '.join(f'{n} {name}' for name, n in tensors.items())}", flush=True)
    if importlib.util.find_spec("llama_cpp") is None:
        print("           not checked: pip install 'teenytinyllama[gguf]' brings llama.cpp", flush=True)
        return row
    checks = compare_in_llama_cpp(path, job.model, job.tokenizer)
    _ensure_same(kind, checks)
    said = (
        f"           llama.cpp: ids of {checks['lines']} lines equal, logits within {checks['largest_difference']:.2g} "
        f"of {checks['largest_logit']:.3g}, greedy text {'equal' if checks['same_greedy_text'] else 'differs'}"
    )
    found = measure_gguf(path, job.yardstick) if job.yardstick else {}
    print(said + (f", {found['bits_per_byte']:.4f} bits per byte" if found else ""), flush=True)
    return {**row, "checks": checks, **found}


def _write_weights(job: _Job, folder: Path, kind: str) -> dict[str, Any]:
    """Write a model and its tokenizer as transformers reads them, and return what is known of the files."""
    from ..models import from_pretrained
    from .file_quality import measure_model

    if kind == "int8":
        write_int8(job.model, job.tokenizer, folder)
    else:
        write_safetensors(job.model, job.tokenizer, folder, kind, job.config.max_shard_size)
    weights = sorted(folder.glob("*.safetensors"))
    names = [path.name for path in sorted(folder.iterdir()) if path.name not in (EMISSIONS_NAME, LEDGER_NAME)]
    size = sum(path.stat().st_size for path in weights)
    print(f"{kind:10} {format_bytes(size)} in {counted(len(weights), 'file')}", flush=True)
    found = {}
    if job.yardstick:
        found = measure_model(from_pretrained(folder)[0], job.yardstick)
        print(f"           {found['bits_per_byte']:.4f} bits per byte", flush=True)
    first, *others = sorted(names, key=lambda name: name != weights[0].name)
    hashes = {name: sha256_file(folder / name) for name in (first, *others)}
    return {"path": first, "type": kind, "bytes": size, "sha256": hashes.pop(first), "others": hashes, **found}


def _ensure_smaller(kind: str, size: int, model: "PreTrainedModel") -> None:
    """Check that a file of 4 bits is smaller than one of 8.

    Raises:
        InputError: its rows do not fit the blocks of 4-bit types.
    """
    eight = 8.5 * sum(parameter.numel() for parameter in model.parameters() if parameter.dim() > 1) / 8
    ensure(
        not kind.startswith("q4") or size < eight,
        f"type={kind}: the model's rows of {model.config.hidden_size} values do not fit its blocks, and the file would "
        "be no smaller than one of q8_0. Export q8_0.",
    )


def _ensure_same(kind: str, checks: dict[str, Any]) -> None:
    """Check that llama.cpp reads a file as transformers reads the model.

    Raises:
        RunFailedError: it gives other ids, or of f16 other logits.
    """
    if checks["lines_with_other_ids"]:
        raise RunFailedError(
            f"type={kind}: llama.cpp gives other ids than the tokenizer on {checks['lines_with_other_ids']} of "
            f"{checks['lines']} lines. Nothing was written. Please report it with the tokenizer."
        )
    difference = checks["largest_difference"]
    if kind == "f16" and not difference <= _MOST_F16_DIFFERENCE * checks["largest_logit"]:
        raise RunFailedError(
            f"type={kind}: llama.cpp's logits differ by {difference:.3g} from the model's, whose largest is "
            f"{checks['largest_logit']:.3g}. Nothing was written. Weights beyond float16 are one cause: try q8_0."
        )


def _metadata(job: _Job) -> dict[str, Any]:
    """Return what a GGUF file says beside the model's shape."""
    from ..chat.generation import end_token_ids

    tokenizer = job.tokenizer
    others = sorted(end_token_ids(job.model, tokenizer) - {tokenizer.eos_token_id})
    return {
        "name": job.config.model_name, "license": job.license, "languages": ["pt"],
        "bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "eot": others[0] if others else None,
        "unk": tokenizer.unk_token_id, "pad": tokenizer.pad_token_id, "chat_template": tokenizer.chat_template,
        "add_bos": tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id,
    }  # fmt: skip


def _license_of(config: ExportConfig) -> str | None:
    """Return the licence that the model's card states, or None."""
    card = locate(config.model_name_or_path, config.revision).find(CARD_NAME)
    if card is None:
        return None
    front = re.match(r"---\r?\n(.*?)\r?\n---", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    try:
        found = yaml.safe_load(front[1]) if front else None
    except yaml.YAMLError:  # a card that somebody wrote by hand
        return None
    license_name = found.get("license") if isinstance(found, dict) else None
    return license_name if isinstance(license_name, str) else None
