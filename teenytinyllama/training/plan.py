"""What is checked before a run starts; nothing is written here."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arguments import build
from ..checkpoints import complete_checkpoints
from ..checks import ensure, ensure_disk_space
from ..data.packed import PackedCorpus, load_packed, print_summary
from ..data.packing import PackConfig
from ..data.packing import pack as pack_corpus
from ..evaluation.signal import local_tasks
from ..grid import GRID_KEYS
from ..manifest import MANIFEST_NAME
from ..meter import check_energy
from ..presets import count_parameters, get_preset, preset_config
from ..published import load_config, load_tokenizer
from ..tokenizer import tokenizer_fingerprint
from .batch import derive_batch
from .checkpoints import check_run_folder, run_identity
from .config import PretrainConfig, corpus_config_values
from .memory import checkpoint_bytes, final_model_bytes
from .metrics import METRICS_NAME, read_jsonl
from .settings import RunSettings

if TYPE_CHECKING:
    from transformers import LlamaConfig, PreTrainedTokenizerBase


_IDENTITY = (
    "preset shape model_name_or_path model_revision tokens_per_step learning_rate lr_scheduler_type warmup_steps "
    "weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm optim seed"
)


@dataclass(frozen=True)
class RunPlan:
    """What was checked before any training starts."""

    folder: Path
    state: str  # new, resume or complete
    tokenizer: "PreTrainedTokenizerBase"
    model_config: "LlamaConfig"
    identity: dict[str, Any]


@dataclass(frozen=True)
class PretrainPlan(RunPlan):
    """What was checked before pretraining starts."""

    packed: PackedCorpus


def plan_run(config: PretrainConfig) -> PretrainPlan:
    """Check a config against its files and its run folder; writes nothing.

    Raises:
        InputError: tokenizer, rows and model disagree, rows longer than the context, unknown country, a folder that
            holds another run, or a full disk.
    """
    check_energy(config)
    packed = load_packed(str(config.packed))
    own = config.tokenizer == config.model_name_or_path
    tokenizer = load_tokenizer("tokenizer", str(config.tokenizer), config.model_revision if own else None)
    fingerprint = tokenizer_fingerprint(tokenizer)
    ensure(
        fingerprint == packed.manifest["tokenizer_sha256"],
        f"tokenizer={config.tokenizer}: is not the one that packed={config.packed} was made with "
        f"({packed.manifest['config']['tokenizer']}). Give that one, or pack again.",
    )
    model_config = _model_config(config, tokenizer, fingerprint)
    context = packed.manifest["context"]
    ensure(
        context <= model_config.max_position_embeddings,
        f"packed={config.packed}: its rows of {context} tokens are longer than the model's context of "
        f"{model_config.max_position_embeddings}. Pack again with a context of that or less.",
    )
    model_config.max_position_embeddings = context  # a model must not promise a context it has never seen
    if config.signal_data_dir is not None:
        local_tasks(config.signal_data_dir, tokenizer, config.signal_items)  # refused now, not at the first evaluation
    folder = Path(str(config.output_dir))
    hashes = {"packed_sha256": packed.manifest["hashes"]["train.npy"], "tokenizer_sha256": fingerprint}
    identity = run_identity(config, _IDENTITY.split(), hashes)
    state = run_state(folder, identity, config.max_steps)
    check_space(config, folder, state, count_parameters(model_config))
    return PretrainPlan(folder, state, tokenizer, model_config, identity, packed)


def run_state(folder: Path, identity: dict[str, Any], max_steps: int) -> str:
    """Return new, resume or complete; a run that is complete but shorter than asked for is resumed.

    Raises:
        InputError: see `check_run_folder`.
    """
    state = check_run_folder(folder, identity)
    if state == "complete" and not ended_by_cap(folder) and read_jsonl(folder / METRICS_NAME)[-1]["step"] < max_steps:
        return "resume"  # a longer run goes on where the shorter one ended
    return state


def ended_by_cap(folder: Path) -> str:
    """Return the cap that ended a complete run, or an empty text."""
    training = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8")).get("training", {})
    return str(training.get("ended_by_cap") or "")


def what_follows(folder: Path) -> str:
    """Return what a user could do with a complete run."""
    if cap := ended_by_cap(folder):
        return f"a cap ended it ({cap}). To go on, give it as model_name_or_path of a new run"
    return "a longer run would go on from it"


def _model_config(config: PretrainConfig, tokenizer: "PreTrainedTokenizerBase", fingerprint: str) -> "LlamaConfig":
    if config.preset is not None:
        model_config = preset_config(config.preset, tokenizer)
        known = model_config.to_dict()
        for name, value in (config.shape or {}).items():
            ensure(name in known, f"shape={{{name}: {value}}}: LlamaConfig has no such field.")
            ensure(isinstance(value, int) and value > 0, f"shape={{{name}: {value}}}: must be a positive integer.")
            setattr(model_config, name, value)
        heads = model_config.num_attention_heads
        kv_heads = model_config.num_key_value_heads or heads
        ensure(
            model_config.hidden_size % heads == 0 and heads % kv_heads == 0,
            f"shape={config.shape}: {heads} heads must divide hidden_size={model_config.hidden_size}, and {kv_heads} "
            "num_key_value_heads must divide the heads.",
        )
        if config.shape and "head_dim" not in config.shape:
            model_config.head_dim = model_config.hidden_size // heads
        return model_config
    place = str(config.model_name_or_path)
    found: Any = load_config("model_name_or_path", place, config.model_revision)
    own = load_tokenizer("model_name_or_path", place, config.model_revision)
    ensure(
        tokenizer_fingerprint(own) == fingerprint,
        f"tokenizer={config.tokenizer}: differs from the tokenizer of model_name_or_path={place}. Continued training "
        "keeps the model's own: pack the rows with it.",
    )
    ensure(
        found.vocab_size >= len(tokenizer),
        f"model_name_or_path={place}: has {found.vocab_size} embeddings for {len(tokenizer)} tokens. Embeddings are "
        "never resized silently; use a model and tokenizer that belong together.",
    )
    return found


def check_space(config: RunSettings, folder: Path, state: str, num_parameters: int) -> None:
    """Check that the disk has room for the checkpoints that are to come, while they are kept, and for the final model.

    Raises:
        InputError: it has not.
    """
    if state == "complete":
        return
    count = config.new_checkpoints([step for step, _ in complete_checkpoints(folder)] if folder.exists() else [])
    trained = round((1 - config.frozen_share) * num_parameters)
    each = checkpoint_bytes(trained, config.precision)
    final = final_model_bytes(num_parameters)
    ensure_disk_space(
        "output_dir",
        folder,
        count * each + final,
        f"{count} checkpoint{'s' * (count > 1)} of {each / 1e9:.2f} GB and the final model of {final / 1e9:.2f} GB are "
        f"still to come: {'lower save_total_limit, ' * (count > 1)}free some space, or choose another disk.",
    )


def pack_inputs(values: dict[str, Any]) -> dict[str, Any]:
    """Pack the `inputs` of a pretraining config into `packed` in its run folder, and return the config that reads them.

    Values without `inputs` come back as they are.

    Raises:
        InputError: `inputs` beside `packed`, no output folder, no shape to take the context from, or see `pack`.
    """
    if not values.get("inputs"):
        return values
    ensure(not values.get("packed"), "packed, inputs: give one of the two.")
    ensure(values.get("output_dir"), "output_dir: missing. Give the folder of the run.")
    packing = corpus_config_values(values)
    if "tokenizer" not in packing and values.get("model_name_or_path"):
        ensure(
            not values.get("model_revision"),
            "tokenizer: missing. Beside inputs and model_revision, give the folder of the model's own tokenizer.",
        )
        packing["tokenizer"] = values["model_name_or_path"]
    packing |= {name: values[name] for name in GRID_KEYS if values.get(name) is not None}
    if "context" not in packing:
        ensure(values.get("preset"), "context: missing. Give the tokens a row, which `inputs` are packed into.")
        packing["context"] = get_preset(values["preset"]).max_position_embeddings
    folder = pack_corpus(build(PackConfig, {**packing, "output_dir": str(Path(values["output_dir"]) / "packed")}))
    print_summary(folder)
    only_for_packing = set(packing) - {"tokenizer"} - GRID_KEYS
    kept = {name: value for name, value in values.items() if name not in only_for_packing}
    return {**kept, "packed": str(folder)}


def check_before_launch(values: dict[str, Any], num_processes: int) -> str:
    """Check a config for a number of ranks without starting any; return the run folder's state.

    The config is built for the CPU, so that the process that supervises the ranks holds no GPU memory.

    Raises:
        InputError: see `PretrainConfig` and `plan_run`.
    """
    config = build(PretrainConfig, {**values, "use_cpu": True})
    assert config.context is not None
    derive_batch(
        config.rows_per_step * config.context, config.context, values.get("per_device_train_batch_size"), num_processes
    )
    return plan_run(config).state
