"""Libraries: what they would refuse only when a run is under way, asked first: trackers, optimizers, values."""

import contextlib
import importlib.util
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from ..checks import InputError, ensure, near_name
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
    zero = settings.get("zero_optimization") or {}
    stage = zero.get("stage", 0)
    ensure(
        stage in (1, 2),
        f"optimizer={optimizer}: works on whole matrices, which ZeRO stage {stage} does not give it. Use `--accelerate "
        "zero2`, `zero1` or `ddp`, or optimizer: adamw.",
    )
    ensure(
        not (settings.get("checkpoint") or {}).get("load_universal"),
        f"optimizer={optimizer}: not with checkpoint.load_universal in the DeepSpeed file: DeepSpeed's converter knows "
        "the states of AdamW alone. Remove it.",
    )
    for name, reason in _NOT_UNDER_ZERO.items():
        asked = zero.get(name)
        is_asked = asked.get("device", "cpu") != "none" if isinstance(asked, dict) else bool(asked)
        ensure(
            not is_asked,
            f"optimizer={optimizer}: not with zero_optimization.{name} in the DeepSpeed file: {reason}. Remove it, or "
            "use optimizer: adamw.",
        )


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
