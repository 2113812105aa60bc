"""The plan of a run: what is resolved and checked before it starts, and what its ranks read of that.

Nothing is written here but what `inputs` are packed into.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arguments import Config, build, read_values
from ..checkpointing.checkpoints import complete_checkpoints
from ..checkpointing.saving import check_run_folder, identity_defaults, run_identity
from ..checks import InputError, ensure, ensure_disk_space, format_bytes
from ..data.pack import PackConfig
from ..data.pack import pack as pack_corpus
from ..data.packed import PackedCorpus, check_packed, load_packed, packed_manifest, print_summary
from ..distributed import from_first, ranks_of_run
from ..doctor import look_briefly
from ..energy.emissions import GRID_KEYS
from ..energy.meter import check_energy
from ..evaluation.scoring import local_tasks
from ..models import ensure_llama_shape, load_config, load_tokenizer
from ..planning.memory import checkpoint_bytes, final_model_bytes, optimizer_bytes
from ..presets import count_parameters, get_preset, shaped_config
from ..stage_folder import MANIFEST_NAME, find_manifest, parse_record
from ..tokenizer.encode import tokenizer_fingerprint
from .config import PretrainConfig, PretrainConfigBeforePacking, corpus_config_values, open_batch
from .decay import SCHEDULE, branch_values, check_branch
from .settings import RunSettings, planned_for
from .speed import expected_seconds, optimizer_of

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


@dataclass(frozen=True)
class Resolved:
    """What was resolved and checked before the ranks started, which a rank takes as it is.

    Attributes:
        given: the keys as the user gave them, for `config.yaml`.
        state: of the run's folder: new, resume or complete.
        identity: see `run_identity`.
    """

    given: dict[str, Any]
    state: str
    identity: dict[str, Any]


def resolve_run(
    config_class: type[Config], plan: Callable[[Any], RunPlan], values: dict[str, Any], num_ranks: int
) -> dict[str, Any]:
    """Return a training's config, resolved for so many ranks and checked against its files, as a JSON object.

    It is made for the CPU, so that this process takes no memory of a GPU; device, precision and micro-batch are the
    ranks' own choice.

    Args:
        config_class: a subclass of `RunSettings`.
        plan: makes and checks the plan of such a config.
        values: the checked values of the config, whose data is prepared.
        num_ranks: that will train.

    Raises:
        InputError: see the two.
    """
    with planned_for(num_ranks):
        config: Any = build(config_class, {**values, "use_cpu": True})
    planned = plan(config)
    resolved = dict(config.resolved)
    resolved["values"] = {**resolved["values"], "use_cpu": values.get("use_cpu", False)}
    return {"given": values, "config": resolved, "state": planned.state, "identity": planned.identity}


def read_run(config_class: type[Config], argv: list[str]) -> tuple[Config, Resolved | dict[str, Any]]:
    """Return the config of a rank, and what is known of its run: all of it under `ttl`, else the keys as given.

    Args:
        config_class: a subclass of `RunSettings`.
        argv: `--resolved FILE`, which `ttl` wrote by `resolve_run`; or `--config x.yaml --key value`, which this rank
            resolves for itself, because it was started by another launcher.

    Raises:
        InputError: the config is refused.
    """
    if argv[:1] != ["--resolved"]:
        values = branch_values(config_class, read_values(config_class, argv))
        return build(config_class, values), values
    found = json.loads(Path(argv[1]).read_text(encoding="utf-8"))
    settings: Any = config_class
    return settings.from_resolved(found.pop("config")), Resolved(**found)


def plan_run(config: PretrainConfig, known: Resolved | None = None) -> PretrainPlan:
    """Return the plan of a pretraining, checked against its files and its run folder; writes nothing.

    Args:
        config: the config, with everything derived.
        known: the state and identity of the run; None: they are found and checked here.

    Raises:
        InputError: tokenizer, rows and model disagree, rows longer than the context, unknown country, a folder that
            holds another run, or a full disk.
    """
    if known is None:
        check_energy(config)
    packed, tokenizer, model_config = open_parts(config, is_checked=known is not None)
    folder = Path(str(config.output_dir))
    if known is not None:
        return PretrainPlan(folder, known.state, tokenizer, model_config, known.identity, packed)
    if config.signal_data_dir is not None:
        local_tasks(config.signal_data_dir, tokenizer, config.signal_items)  # refused now, not at the first evaluation
    state, identity = begun_state(config, packed)
    check_space(config, folder, state, model_config)
    plan = PretrainPlan(folder, state, tokenizer, model_config, identity, packed)
    _check_rows(plan)
    _look_before_hours(config, plan)
    return plan


def open_parts(
    config: PretrainConfig, *, is_checked: bool = False
) -> "tuple[PackedCorpus, PreTrainedTokenizerBase, LlamaConfig]":
    """Return the rows, the tokenizer and the model's config of a pretraining, which agree with each other.

    Args:
        config: the config, with everything derived.
        is_checked: the tokenizer was compared with that of the rows before.

    Raises:
        InputError: tokenizer, rows and model disagree, or rows longer than the context.
    """
    packed = load_packed(str(config.packed))
    own = config.tokenizer == config.model_name_or_path
    tokenizer = load_tokenizer("tokenizer", str(config.tokenizer), config.model_revision if own else None)
    fingerprint = packed.manifest["tokenizer_sha256"]
    ensure(
        is_checked or tokenizer_fingerprint(tokenizer) == fingerprint,
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
    return packed, tokenizer, model_config


def begun_state(config: PretrainConfig, packed: PackedCorpus) -> tuple[str, dict[str, Any]]:
    """Return the state of a pretraining's folder, new, resume or complete, and the identity of the run.

    Raises:
        InputError: the folder holds another run, or a checkpoint that no branch of this run can begin at.
    """
    folder, manifest = Path(str(config.output_dir)), packed.manifest
    hashes = {"packed_sha256": manifest["hashes"]["train.npy"], "tokenizer_sha256": manifest["tokenizer_sha256"]}
    identity = run_identity(config, _IDENTITY.split(), hashes)
    defaults = identity_defaults(type(config))
    state = run_state(folder, identity, config.max_steps, defaults)
    if config.decay_from is not None and state != "complete" and not complete_checkpoints(folder):
        check_branch(config, identity, defaults)
    return state, identity


_HOURS_FROM = 1.0  # a run of so many hours is looked at before it starts
_NO_HOUR_FLOPS = 3e13  # what takes any computer less than an hour: its speed need not be known


def _look_before_hours(config: PretrainConfig, plan: PretrainPlan) -> None:
    """Look at rows, clock and disk before a run that is planned to take hours, or where `preflight` asks for it.

    Raises:
        InputError: the run would be of no use, on every rank.
    """
    share = 1 - steps_done(plan.folder) / config.max_steps
    flops = share * config.training_flops(plan.model_config)
    if plan.state == "complete" or config.preflight is False or (flops < _NO_HOUR_FLOPS and not config.preflight):
        return

    def refusal() -> str:
        hours = expected_seconds(flops, ranks_of_run()) / 3600
        if hours < _HOURS_FROM and not config.preflight:
            return ""
        each = size_of_checkpoint(config, plan.model_config)
        return look_briefly(plan.packed, plan.tokenizer, plan.folder, each, hours)

    if message := from_first(refusal):
        raise InputError(message)


def steps_done(folder: Path) -> int:
    """Return the step of the newest complete checkpoint of a run, or 0."""
    return max((step for step, _ in complete_checkpoints(folder)), default=0) if folder.exists() else 0


def _check_rows(plan: PretrainPlan) -> None:
    """Compare the packed rows with their hashes before they are trained on; rank 0 reads them, the others wait.

    Raises:
        InputError: on every rank; see `check_packed`.
    """

    def refusal() -> str | None:
        try:
            check_packed(plan.packed, vocab_size=plan.model_config.vocab_size)
        except InputError as error:
            return str(error)
        return None

    if plan.state != "complete" and (message := from_first(refusal)):
        raise InputError(message)


def run_state(folder: Path, identity: dict[str, Any], max_steps: int, defaults: dict[str, str] | None = None) -> str:
    """Return new, resume or complete; a run that is complete but shorter than asked for is resumed.

    Raises:
        InputError: see `check_run_folder`.
    """
    state = check_run_folder(folder, identity, defaults)
    if state == "complete" and not ended_early(folder) and _record_of_training(folder).get("steps", 0) < max_steps:
        return "resume"  # a longer run goes on where the shorter one ended
    return state


def ended_early(folder: Path) -> str:
    """Return what ended a complete run before its planned length, or an empty text."""
    training = _record_of_training(folder)
    cap, asked = training.get("ended_by_cap"), training.get("ended_as_asked")
    return f"a cap ended it ({cap})" if cap else str(asked or "")


def _record_of_training(folder: Path) -> dict[str, Any]:
    """Return what the manifest of a complete run says of its training.

    Raises:
        InputError: it is damaged.
    """
    path = folder / MANIFEST_NAME
    try:
        training = parse_record(path.read_bytes())["training"]
        return {**training, "steps": int(training["steps"])}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"output_dir={folder}: {MANIFEST_NAME} is damaged ({error!r}). Restore it from a copy; or delete it, and "
            "the same command ends the run again."
        ) from error


def describe_continuation(folder: Path) -> str:
    """Return how a user can train on from a complete run, for a message."""
    if reason := ended_early(folder):
        return f"{reason}. To go on, give it as model_name_or_path of a new run"
    if (find_manifest(folder) or {}).get("config", {}).get("lr_scheduler_type") == SCHEDULE:
        return (
            "a longer run would go on from it, after its decay; --decay_from a checkpoint from before that goes on as "
            "if the run had been planned longer"
        )
    return "a longer run would go on from it"


def _model_config(config: PretrainConfig, tokenizer: "PreTrainedTokenizerBase", fingerprint: str) -> "LlamaConfig":
    if config.preset is not None:
        return shaped_config(config.preset, config.shape, tokenizer)
    place = str(config.model_name_or_path)
    found: Any = load_config("model_name_or_path", place, config.model_revision)
    ensure_llama_shape("model_name_or_path", place, found)
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


def check_before_data(config: RunSettings, values: dict[str, Any], names: list[str], model_config: Any) -> None:
    """Refuse what a run's folder and its disk tell before the data of the run are prepared there.

    Args:
        config: with everything derived that does not need the data.
        values: the keys as the user gave them; a batch or a length that is not among them follows from the data.
        names: of the keys that decide the run, see `run_identity`.
        model_config: shape of the model.

    Raises:
        InputError: the folder holds another run or other files, or the disk has no room for the checkpoints.
    """
    arguments: Any = config
    folder = Path(str(arguments.output_dir))
    follow = {name for name in ("tokens_per_step", "pairs_per_step") if values.get(name) is None}
    identity, defaults = run_identity(config, names, {}), identity_defaults(type(config))
    known = ({name: text for name, text in found.items() if name not in follow} for found in (identity, defaults))
    state = check_run_folder(folder, *known)
    if (values.get("max_steps") or 0) > 0 or values.get("max_tokens"):
        check_space(config, folder, state, model_config)


def check_space(config: RunSettings, folder: Path, state: str, model_config: Any) -> None:
    """Check that the disk has room for the checkpoints that are to come, while they are kept, and for the final model.

    Raises:
        InputError: it has not.
    """
    if state == "complete":
        return
    count, each, final = space_to_come(config, folder, model_config)
    ensure_disk_space(
        "output_dir",
        folder,
        count * each + final,
        f"{count} checkpoint{'s' * (count > 1)} of {format_bytes(each)} and the final model of {format_bytes(final)} "
        f"are still to come: {'lower save_total_limit, ' * (count > 1)}free some space, or choose another disk.",
    )


def space_to_come(config: RunSettings, folder: Path, model_config: Any) -> tuple[int, int, int]:
    """Return by how many checkpoints a run's folder will grow, the bytes of each, and those of the final model."""
    count = config.new_checkpoints([step for step, _ in complete_checkpoints(folder)] if folder.exists() else [])
    return count, size_of_checkpoint(config, model_config), final_model_bytes(count_parameters(model_config))


def size_of_checkpoint(config: RunSettings, model_config: Any, zero_stage: int | None = None) -> int:
    """Return the bytes of a checkpoint of a run; the stage is None until the ranks tell it, see `checkpoint_bytes`."""
    trained = round((1 - config.frozen_share) * count_parameters(model_config))
    moments = optimizer_bytes(model_config, optimizer_of(config), config.frozen_share)
    return checkpoint_bytes(trained, config.precision, zero_stage, moments)


def pack_inputs(values: dict[str, Any], num_processes: int = 1) -> dict[str, Any]:
    """Pack the `inputs` of a pretraining config into `packed` in its run folder, and return the config that reads them.

    A branch gets the keys of its run first (`branch_values`). Values without `inputs` come back as they are. What can
    be refused without the rows is refused first, so that a refusal leaves nothing behind.

    Raises:
        InputError: `inputs` beside `packed`, no output folder, no shape to take the context from, a value that
            `PretrainConfig` refuses, or see `pack`.
    """
    values = branch_values(PretrainConfig, values)
    if not values.get("inputs"):
        return values
    packing, _, _ = check_inputs(values, num_processes)
    folder = pack_corpus(build(PackConfig, {**packing, "output_dir": str(Path(values["output_dir"]) / "packed")}))
    print_summary(folder)
    only_for_packing = set(packing) - {"tokenizer"} - GRID_KEYS
    kept = {name: value for name, value in values.items() if name not in only_for_packing}
    return {**kept, "packed": str(folder)}


def check_inputs(
    values: dict[str, Any], num_processes: int
) -> "tuple[dict[str, Any], PretrainConfigBeforePacking, LlamaConfig]":
    """Refuse what is wrong with a pretraining whatever its rows will hold; nothing is written.

    Returns:
        What its `inputs` are to be packed with, its config before they are, and the model's config.

    Raises:
        InputError: see `pack_inputs`.
    """
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
    context = packing["context"]
    with planned_for(num_processes):
        early = build(PretrainConfigBeforePacking, {**values, "context": context, "use_cpu": True})
    check_energy(early)
    tokenizer = load_tokenizer("tokenizer", str(early.tokenizer))
    model_config = _model_config(early, tokenizer, tokenizer_fingerprint(tokenizer))
    ensure(
        context <= model_config.max_position_embeddings,
        f"context={context}: rows of that many tokens are longer than the model's context of "
        f"{model_config.max_position_embeddings}. Use that or less.",
    )
    check_before_data(early, values, _IDENTITY.split(), model_config)
    return packing, early, model_config


def with_batch(values: dict[str, Any], num_processes: int) -> dict[str, Any]:
    """Return the values of a pretraining with the tokens of a step that so many ranks will choose.

    Values that have them, or that the config will refuse, come back as they are.

    Raises:
        InputError: see `packed_manifest` and `open_batch`.
    """
    if values.get("tokens_per_step") is not None or not values.get("packed"):
        return values
    micro_batch, context = values.get("per_device_train_batch_size"), packed_manifest(str(values["packed"]))["context"]
    chosen, _ = open_batch(values.get("output_dir"), values.get("max_tokens"), context, num_processes, micro_batch)
    return {**values, "tokens_per_step": chosen}
