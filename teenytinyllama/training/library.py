"""Libraries: what they would refuse only when a run is under way, asked first; and how a step is left out of them."""

import contextlib
import functools
import importlib.util
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from ..checks import InputError, RunFailedError, ensure, near_name
from ..planning.memory import OptimizerName
from .speed import zero_stage_of

# What the Trainer can report to: the module that its callback imports, and what pip calls it. Source: transformers
# 5.17, integrations/integration_utils.py.
TRACKERS: dict[str, tuple[str, str]] = {
    "azure_ml": ("azureml", "azureml-core"),
    "clearml": ("clearml", "clearml"),
    "comet_ml": ("comet_ml", "comet_ml"),
    "dagshub": ("dagshub", "dagshub mlflow"),
    "dvclive": ("dvclive", "dvclive"),
    "flyte": ("flytekit", "flytekit flytekitplugins-deck-standard"),
    "mlflow": ("mlflow", "mlflow"),
    "neptune": ("neptune", "neptune"),
    "swanlab": ("swanlab", "swanlab"),
    "tensorboard": ("tensorboard", "tensorboard"),
    "trackio": ("trackio", "trackio"),
    "wandb": ("wandb", "wandb"),
}
# A tracker that asks for a login would wait for a terminal that a rank does not have: one of the variables or files
# answers it, else the advice is given.
_LOGINS: dict[str, tuple[tuple[str, ...], tuple[str, ...], str]] = {
    "wandb": (("WANDB_API_KEY", "WANDB_MODE", "WANDB_DISABLED"), ("~/.netrc", "~/_netrc"),
              "Run `wandb login`, or without a network set WANDB_MODE=offline."),
    "comet_ml": (("COMET_API_KEY", "COMET_MODE", "COMET_START_ONLINE", "COMET_OFFLINE_DIRECTORY"),
                 ("~/.comet.config", ".comet.config"), "Run `comet login`, or set COMET_MODE=OFFLINE."),
    "neptune": (("NEPTUNE_API_TOKEN", "NEPTUNE_MODE"), (), "Set NEPTUNE_API_TOKEN and NEPTUNE_PROJECT."),
    "clearml": (("CLEARML_API_ACCESS_KEY", "CLEARML_CONFIG_FILE", "CLEARML_OFFLINE_MODE"), ("~/clearml.conf",),
                "Run `clearml-init`, or set CLEARML_OFFLINE_MODE=1."),
    "swanlab": (("SWANLAB_API_KEY", "SWANLAB_MODE"), ("~/.swanlab/.netrc",),
                "Run `swanlab login`, or set SWANLAB_MODE=offline."),
}  # fmt: skip
# Whatever the libraries' own checks of a value raise.
_REFUSALS = (ValueError, TypeError, KeyError, AttributeError, ImportError, OSError, RuntimeError, AssertionError)


def check_trackers(report_to: str | list[str] | None) -> None:
    """Check that everything that a run shall report to is known, installed and logged in to.

    Raises:
        InputError: it is not; the message has the pip line.
    """
    names = [report_to] if isinstance(report_to, str) else report_to or []
    shown = f"report_to={', '.join(names)}"
    ensure(
        not {"all", "codecarbon"} & set(names),
        f"{shown}: would start a second energy tracker beside ours. Name the tracker you want.",
    )
    ensure("none" not in names or len(names) == 1, f"{shown}: none stands alone. Name trackers, or give none.")
    for name in names if names != ["none"] else []:
        ensure(
            name in TRACKERS,
            f"{shown}: must be none or some of {', '.join(TRACKERS)}.{near_name(name, (*TRACKERS, 'none'))}",
        )
        module, packages = TRACKERS[name]
        needed = (module, "mlflow") if name == "dagshub" else (module,)
        ensure(
            all(importlib.util.find_spec(each) is not None for each in needed),
            f"report_to={name}: its package is not installed. Run: pip install {packages}. Or leave report_to out; "
            "metrics.jsonl and loss.png are always written.",
        )
        variables, files, advice = _LOGINS.get(name, ((), (), ""))
        known = any(os.environ.get(each) for each in variables) or any(
            Path(each).expanduser().exists() for each in files
        )
        ensure(known or not advice, f"report_to={name}: nobody is logged in here, and a run cannot ask. {advice}")


def library_keys() -> dict[str, Any]:
    """Return the keys of TrainingArguments with their defaults."""
    from transformers import TrainingArguments

    found = {}
    for item in fields(TrainingArguments):
        if item.init:
            found[item.name] = item.default_factory() if item.default_factory is not MISSING else item.default
    return found


@contextlib.contextmanager
def refused_by_library(given: dict[str, Any]) -> Iterator[None]:
    """Turn what a library raises at the values of a config into one refusal that names the key.

    Args:
        given: the values of TrainingArguments' keys.

    Raises:
        InputError: with the key, if one value alone is refused, and the library's reason.
    """
    try:
        yield
    except InputError:
        raise
    except _REFUSALS as error:
        key = _key_at_fault(given, error)
        value = f"{key}={str(given[key])[:200]}" if key else "config"
        reason = " ".join(f"{error}".split()) or type(error).__name__
        what = f"{type(error).__name__}: " if isinstance(error, KeyError | AttributeError | TypeError) else ""
        raise InputError(f"{value}: transformers refuses it: {what}{reason} Change it, or leave it out.") from error


def _key_at_fault(given: dict[str, Any], error: Exception) -> str | None:
    """Return the key whose value alone, beside defaults, meets the same kind of error, or one that the error names."""
    from transformers import TrainingArguments

    defaults = library_keys()
    changed = {name: value for name, value in given.items() if value != defaults[name] and value is not None}
    quoted = re.findall(r"'([^']+)'", str(error))
    for name, value in changed.items():  # an option in a mapping that the error names, as `{'no_such': 1}`
        if isinstance(value, dict) and set(quoted) & set(value):
            return name
    tries: tuple[Callable[[Any], object], ...] = (lambda arguments: arguments, try_optimizer)
    for name, value in changed.items():
        try:
            alone = TrainingArguments(**{"output_dir": "unused", "use_cpu": True, "max_steps": 10, name: value})
            for attempt in tries:
                attempt(alone)
        except type(error):
            return name
        except _REFUSALS:
            continue
    named = [name for name in changed if name in str(error)]
    return max(named, key=len, default=None)


# What DeepSpeed's files may ask for that Muon does not do: key of zero_optimization, and why not.
_NOT_UNDER_ZERO = {
    "offload_optimizer": "the matrices would be orthogonalised on the CPU, for longer than a step takes",
    "cpu_offload": "the matrices would be orthogonalised on the CPU, for longer than a step takes",
    "zenflow": "it changes parts of matrices at different times",
    "round_robin_gradients": "it lays matrices out in another order, which nobody has tried with Muon",
    "elastic_checkpoint": "its checkpoints keep states by their length alone",
}


def check_zero(optimizer: OptimizerName, settings: dict[str, Any] | None) -> None:
    """Check the optimizer against DeepSpeed's settings.

    Args:
        optimizer: of the config.
        settings: see `distributed.deepspeed_settings`.

    Raises:
        InputError: DeepSpeed would choose an optimizer of its own; or Muon under another stage than ZeRO 1 and 2, or
            with a setting of `_NOT_UNDER_ZERO`.
    """
    if settings is None:
        return
    kind = (settings.get("optimizer") or {}).get("type")
    ensure(
        kind is None,
        f"optimizer.type={kind} in the DeepSpeed file: DeepSpeed's own optimizer would decay norms too, and its Muon "
        "updates by another size. Remove that section: the config chooses (optim; in pretraining also optimizer).",
    )
    if optimizer == "adamw":
        return
    ensure(
        not (settings.get("checkpoint") or {}).get("load_universal"),
        f"optimizer={optimizer}: not with checkpoint.load_universal in the DeepSpeed file: DeepSpeed's converter knows "
        "the states of AdamW alone. Remove it.",
    )
    at_stage = "works on whole matrices, which ZeRO stage {} does not give it"
    _ensure_zero_can(settings, f"optimizer={optimizer}", "optimizer: adamw", at_stage, _NOT_UNDER_ZERO)


def _ensure_zero_can(
    settings: dict[str, Any], wish: str, instead: str, at_stage: str, unwanted: Mapping[str, str]
) -> None:
    """Refuse a key of the config under another ZeRO stage than 1 and 2, and beside some settings of DeepSpeed's file.

    Args:
        settings: of DeepSpeed, see `distributed.deepspeed_settings`.
        wish: the key and its value, for the message.
        instead: what can be used in its place.
        at_stage: what is wrong with the other stages, with braces for the number.
        unwanted: names in `zero_optimization`, each with the reason.

    Raises:
        InputError: the first of them that is so.
    """
    zero = settings.get("zero_optimization") or {}
    stage = zero.get("stage", 0)
    ensure(
        stage in (1, 2),
        f"{wish}: {at_stage.format(stage)}. Use `--accelerate zero2`, `zero1` or `ddp`, or {instead}.",
    )
    for name, reason in unwanted.items():
        ensure(
            not _is_asked(zero.get(name)),
            f"{wish}: not with zero_optimization.{name} in the DeepSpeed file: {reason}. Remove it, or use {instead}.",
        )


# What DeepSpeed's files may ask for that changes weights outside of a step.
_OUTSIDE_OF_STEPS = ("offload_optimizer", "cpu_offload", "zenflow")


def check_skipping(action: str, settings: dict[str, Any] | None) -> None:
    """Check that DeepSpeed lets a bad step be left out, or a run be built anew; see `guards`.

    Args:
        action: `on_bad_step` of the config.
        settings: see `distributed.deepspeed_settings`.

    Raises:
        InputError: it does not, as its settings are.
    """
    if settings is None or action == "stop":
        return
    unwanted = dict.fromkeys(_OUTSIDE_OF_STEPS, "it changes weights outside of a step")
    at_stage = "not under ZeRO stage {}, where nobody has tried it"
    _ensure_zero_can(settings, f"on_bad_step={action}", "on_bad_step: stop", at_stage, unwanted)


def _is_asked(setting: Any) -> bool:
    return setting.get("device", "cpu") != "none" if isinstance(setting, dict) else bool(setting)


def skip_bad_steps(trainer: Any, is_bad: Callable[..., bool]) -> None:
    """Let a training leave out each step that is bad: its optimizer and its weights stay as they are.

    Under DeepSpeed a bad step is an overflow, after which DeepSpeed drops the gradients and changes nothing. The loss
    scale of fp16 and the schedule go on as after any other step.

    Args:
        trainer: whose model and optimizer are prepared.
        is_bad: is called once a step, on all ranks, before the optimizer; under DeepSpeed with the gradient norm.

    Raises:
        RunFailedError: this DeepSpeed cannot be asked.
    """
    engine, optimizer = trainer.model_wrapped, trainer.optimizer
    if not hasattr(engine, "zero_optimization_stage"):
        step, scaler = optimizer.step, getattr(optimizer, "scaler", None)

        @functools.wraps(step)  # torch's schedule looks for a mark on it
        def step_unless_bad(*args: Any, **kwargs: Any) -> None:
            if not is_bad():
                step(*args, **kwargs)
            elif scaler is not None:
                scaler.update()  # it has unscaled the gradients, and waits for the end of the step

        optimizer.step = step_unless_bad
        return
    zero, step_of_engine, ours = engine.optimizer, engine.step, [False]
    if hasattr(zero, "clear_hp_grads"):
        _ask_bf16_optimizer(zero, is_bad, ours)
    elif all(hasattr(zero, name) for name in ("check_overflow", "check_grad_overflow", "_update_scale")):
        _ask_zero_optimizer(zero, is_bad, ours)
    else:
        raise RunFailedError(
            f"on_bad_step=skip: {type(zero).__name__} of this DeepSpeed cannot be asked to leave a step out. Use "
            "on_bad_step: rewind, or deepspeed 0.19.8."
        )

    def step_and_go_on(*args: Any, **kwargs: Any) -> None:
        ours[0] = False
        step_of_engine(*args, **kwargs)
        if ours[0]:
            zero.overflow = False  # or the learning rate would stay behind the steps

    engine.step = step_and_go_on


def _ask_zero_optimizer(zero: Any, is_bad: Callable[..., bool], ours: list[bool]) -> None:
    """Ask before ZeRO's step. Source: deepspeed 0.19.8, runtime/zero/stage_1_and_2.py, `step`."""
    checks, check, norm_of, update = (zero.check_grad_overflow, zero.check_overflow, zero.scaled_global_norm,
                                      zero._update_scale)  # fmt: skip
    norm: list[Any] = [0.0]

    def check_overflow(partition_gradients: bool = True) -> None:
        if checks:
            check(partition_gradients)
        overflows = bool(zero.overflow)
        norm[0] = float("inf") if overflows else norm_of()
        ours[0] = is_bad(norm[0] / zero.loss_scale)
        zero.overflow = overflows or ours[0]
        norm[0] = None if zero.overflow else norm[0]

    zero.check_grad_overflow = True
    zero.check_overflow = check_overflow
    zero.scaled_global_norm = lambda norm_type=2: norm[0]
    zero._update_scale = lambda has_overflow=False: update(has_overflow and not ours[0])


def _ask_bf16_optimizer(zero: Any, is_bad: Callable[..., bool], ours: list[bool]) -> None:
    """Ask before the step of ZeRO 1 in bf16. Source: deepspeed 0.19.8, runtime/bf16_optimizer.py, `step`."""
    from deepspeed.runtime.utils import get_global_norm_of_tensors

    step = zero.step

    def step_unless_bad(closure: Any = None) -> None:
        gradients, _ = zero.get_grads_for_norm()
        ours[0] = is_bad(get_global_norm_of_tensors(gradients, mpu=zero.mpu, norm_type=zero.norm_type))
        if not ours[0]:
            step(closure)
            return
        zero.overflow = True
        zero._global_grad_norm = float("inf")
        zero.clear_hp_grads()
        zero.clear_lp_grads()

    zero.step = step_unless_bad


def try_optimizer(arguments: Any) -> None:
    """Make the optimizer and the schedule of a config for one small matrix, and throw them away.

    The Trainer makes them after the model and the data are loaded: a package that is missing, an option that the
    optimizer does not have, or a schedule without its length would be met minutes later.

    Raises:
        Exception: whatever they raise.
    """
    import torch
    from transformers import Trainer, get_scheduler

    weight = torch.nn.Parameter(torch.zeros(2, 2))  # of no random numbers: a check changes no run
    if arguments.optim_target_modules is None:  # optimizers of whole layers want the model's own
        kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
        optimizer = kind([weight], **options)
    else:
        optimizer = torch.optim.SGD([weight], lr=arguments.learning_rate)
    if str(getattr(arguments.lr_scheduler_type, "value", arguments.lr_scheduler_type)) == "greedy":
        return
    steps = max(1, arguments.max_steps)
    get_scheduler(
        arguments.lr_scheduler_type,
        optimizer=optimizer,
        num_warmup_steps=arguments.get_warmup_steps(steps),
        num_training_steps=steps,
        scheduler_specific_kwargs=arguments.lr_scheduler_kwargs,
    )


def check_plain_weights(config: Any) -> None:
    """Check that a checkpoint will hold the whole weights for anyone to load, under ZeRO 3 too.

    Raises:
        InputError: accelerate's file asks for ZeRO 3 without them.
    """
    if zero_stage_of(config) != 3:
        return
    asked = config.deepspeed_plugin.deepspeed_config["zero_optimization"]
    gathers = asked.get("stage3_gather_16bit_weights_on_model_save")
    ensure(
        gathers is True,
        f"stage3_gather_16bit_weights_on_model_save={gathers}: checkpoints would hold no weights that load without "
        "DeepSpeed. Set it to true in the DeepSpeed file, or zero3_save_16bit_model: true in accelerate's.",
    )
