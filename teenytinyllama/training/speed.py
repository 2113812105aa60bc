"""Speed: where the loss is computed, whether layers are compiled, which attention is used, and what a cap pays for.

The loss of a training step is computed by the model's `forward(input_ids, labels=…)`, which the Trainer calls. For
pretraining and SFT alike, `fuse_loss` replaces it by one that makes no whole logits. Those are tokens x vocabulary:
0.5 GB for 4,096 tokens and 32,000 entries in float32, several times over in the backward pass, more than all layers of
a small model together. There are three kinds of loss (`choose_loss`):

whole     the model's own loss, from whole logits.
chunked   torch 2.13 computes the head and the cross-entropy chunk by chunk, gradients included
          (`torch.nn.functional.linear_cross_entropy`). On a CPU it is also the faster way, because a chunk stays in the
          cache (docs/performance.md).
compiled  on a GPU, head and cross-entropy are compiled together: logits exist in 16 bits alone, and float32 only within
          the kernels. Training 160m on an H100 went from 359,000 to 422,000 tokens/s by it (docs/gpu.md).
"""

import contextlib
import functools
import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from transformers.modeling_outputs import CausalLMOutputWithPast

from ..checks import ensure
from ..data.packed import packed_manifest
from ..gpus import device_name, has_accelerator, peak_flops
from ..planning.memory import CPU_CHUNK_BYTES, LossKind, OptimizerName

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def has_chunked_loss() -> bool:
    """Return whether this torch computes head and loss in chunks (2.13 and later)."""
    return hasattr(torch.nn.functional, "linear_cross_entropy")


def fuse_loss(model: "PreTrainedModel", kind: LossKind) -> None:
    """Make `model(input_ids, labels=…)` compute its loss without whole logits, in place; calls without labels stay.

    In training mode the output has `loss` alone. In evaluation mode its `logits` are (batch, 2): the summed nats of
    the scored tokens of each row and their number, as `evaluation.held_out.window_nats` makes them from real logits.

    Args:
        model: a causal language model of transformers, see `models.has_plain_head`.
        kind: chunked or compiled; whole leaves the model alone.
    """
    if kind == "whole":
        return
    plain = model.forward

    @functools.wraps(plain)
    def forward(input_ids: Any = None, *args: Any, labels: Any = None, **kwargs: Any) -> Any:
        if labels is None:
            return plain(input_ids, *args, **kwargs)
        num_items = kwargs.pop("num_items_in_batch", None)
        hidden = model.base_model(input_ids, *args, **{**kwargs, "use_cache": False}).last_hidden_state
        weight, device = model.get_output_embeddings().weight, hidden.device.type
        if torch.is_autocast_enabled(device):  # the chunked op is not on autocast's list
            hidden, weight = (tensor.to(torch.get_autocast_dtype(device)) for tensor in (hidden, weight))
        with torch.autocast(device, enabled=False):
            if model.training:
                return _training_output(hidden, weight, labels, num_items, kind)
            return _evaluation_output(hidden, weight, labels, kind)

    model.forward = forward  # type: ignore[method-assign]


def _training_output(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, num_items: Any, kind: LossKind
) -> CausalLMOutputWithPast:
    """Return the loss (the mean over the scored tokens, or their sum over `num_items`) of hidden states.

    Args:
        hidden: (batch, tokens, hidden size).
        weight: (vocabulary, hidden size).
        labels: (batch, tokens), -100 where nothing is scored; labels[t] is predicted by hidden[t - 1].
        num_items: scored tokens of the whole optimizer step, over all ranks; None: those of this batch.
        kind: see `fuse_loss`.
    """
    states, targets = hidden[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    if kind == "compiled":
        nats = compiled_nats()(states, weight, targets)
    else:
        # A sum of thousands of nats in bfloat16 has two digits. The nats of single tokens are summed in float32.
        reduction = "sum" if hidden.dtype == torch.float32 else "none"
        nats = _chunked_nats(states, weight, targets, reduction).float().sum()
    return CausalLMOutputWithPast(  # type: ignore[arg-type]
        loss=nats / ((targets != -100).sum() if num_items is None else num_items)
    )


def _evaluation_output(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, kind: LossKind
) -> CausalLMOutputWithPast:
    """Return the mean loss of all scored tokens, and as `logits` what `fuse_loss` says; shapes as in training."""
    targets = labels[:, 1:]
    if kind == "compiled":  # not in evaluations, which have many shapes: here the logits of one row at a time
        pairs = zip(hidden[:, :-1], targets, strict=True)
        nats = torch.stack([nats_from_logits(states, weight, row, "none") for states, row in pairs])
    else:
        nats = _chunked_nats(hidden[:, :-1].flatten(0, 1), weight, targets.flatten(), "none").view(targets.shape)
    rows = torch.stack([nats.float().sum(dim=1), (targets != -100).sum(dim=1).float()], dim=1)
    return CausalLMOutputWithPast(loss=rows[:, 0].sum() / rows[:, 1].sum(), logits=rows)  # type: ignore[arg-type]


def _chunked_nats(states: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, reduction: str) -> torch.Tensor:
    """Return the nats of the targets (tokens,) or their sum, in chunks of states (tokens, hidden)."""
    options = chunk_options(states.device.type, weight.shape[0])
    nats: torch.Tensor = torch.nn.functional.linear_cross_entropy(
        states, weight, targets, reduction=reduction, options=options
    )
    return nats


def chunk_options(device: str, vocab_size: int) -> Any:
    """Return torch's options for the chunks on a device."""
    if device != "cpu":
        return torch.nn.LinearCrossEntropyOptions()
    return torch.nn.LinearCrossEntropyOptions(
        chunking_method=None, batch_chunk_size=max(1, CPU_CHUNK_BYTES // (4 * vocab_size))
    )


def nats_from_logits(states: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, reduction: str) -> torch.Tensor:
    """Return what `_chunked_nats` does, from whole logits."""
    logits = torch.nn.functional.linear(states, weight).float()
    return torch.nn.functional.cross_entropy(logits, targets, reduction=reduction)


@functools.cache
def compiled_nats() -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return the summed nats of (tokens, hidden), (vocabulary, hidden), (tokens,) as one compiled function."""
    return torch.compile(functools.partial(nats_from_logits, reduction="sum"))


# Compiling takes 15 to 40 s on a CPU and saves a tenth of the time, so it pays back after about five minutes. On an
# H100 it takes 8 to 15 s and saves half of the time of the preset 160m (docs/gpu.md).
COMPILE_PAYS_SECONDS = {"cpu": 600, "gpu": 60}
_EXPECTED_MFU = 0.3  # for that estimate only
GPU_ATTENTION = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}
_PLAIN_CAUSAL = "sdpa_without_mask"
_ZERO_3 = "under ZeRO 3 each rank holds a part of every layer"
_OTHER_HEAD = "the logits of this model are not a plain product of its head"
ATTENTION = ("sdpa", "eager", *GPU_ATTENTION)


class SpeedKeys(Protocol):
    """The keys of a training's config that decide how fast a step is; see `PretrainConfig`."""

    attn_implementation: str
    chunked_loss: bool | None
    compile_layers: bool | None
    use_liger_kernel: bool

    @property
    def world_size(self) -> int:
        """Return the number of ranks."""


@dataclass(frozen=True)
class SpeedPlan:
    """Which ways of computing a run uses, each with its reason for the banner."""

    loss: LossKind
    compile_layers: bool
    reasons: dict[str, str]


def check_speed(config: SpeedKeys) -> None:
    """Refuse what this machine cannot do, before anything is loaded.

    Raises:
        InputError: an unknown attention, a GPU-only switch without a GPU, a missing package or compiler.
    """
    check_attention(config.attn_implementation)
    ensure(
        not config.chunked_loss or has_chunked_loss(),
        "chunked_loss=true: needs torch 2.13 or newer. Leave it out, or on a GPU set use_liger_kernel.",
    )
    ensure(
        not (config.chunked_loss and config.use_liger_kernel),
        "chunked_loss=true, use_liger_kernel=true: Liger brings a fused loss of its own. Give one of the two.",
    )
    missing = missing_compiler()
    ensure(
        not config.compile_layers or not missing,
        f"compile_layers=true: torch needs {missing} to compile, which is not here. Install it, or leave the key out.",
    )


def check_attention(attention: str) -> None:
    """Refuse an attention that is unknown or that this machine cannot compute.

    Raises:
        InputError: it is.
    """
    ensure(
        attention in ATTENTION,
        f"attn_implementation={attention}: must be one of {', '.join(ATTENTION)}. sdpa fits everywhere.",
    )
    if attention in GPU_ATTENTION:
        _check_gpu_switch(f"attn_implementation={attention}", GPU_ATTENTION[attention], "flash-attn", "Use sdpa.")


def check_liger(use_liger_kernel: bool) -> None:
    """Refuse Liger's kernels where they cannot run.

    Raises:
        InputError: there is no GPU, or no such package.
    """
    if use_liger_kernel:
        _check_gpu_switch("use_liger_kernel=true", "liger_kernel", "liger-kernel", "Leave it out.")


def _check_gpu_switch(what: str, module: str, package: str, fix: str) -> None:
    ensure(torch.cuda.is_available(), f"{what}: needs an NVIDIA or AMD GPU, and torch sees none. {fix}")
    ensure(
        importlib.util.find_spec(module) is not None,
        f"{what}: needs the package {package}: pip install {package}. Or: {fix}",
    )


def missing_compiler() -> str:
    """Return what torch lacks here to compile a layer, or an empty text."""
    if has_accelerator():
        return "" if importlib.util.find_spec("triton") else "the package triton"
    command = os.environ.get("CXX", "g++")
    return "" if shutil.which(command) or shutil.which("clang++") else f"a C++ compiler ({command})"


def plan_speed(config: SpeedKeys, flops: float, zero_stage: int, plain_head: bool = True) -> SpeedPlan:
    """Return how a run computes its loss and whether it compiles its layers, where the config leaves that open.

    Args:
        config: checked by `check_speed`.
        flops: of the training that is left to do, over all ranks.
        zero_stage: under 3, ranks hold parts of layers, which neither can be compiled nor have their loss fused.
        plain_head: see `models.has_plain_head`.
    """
    compiled, compile_reason = compiles_layers(config, flops, zero_stage)
    loss, loss_reason = choose_loss(config, flops, zero_stage) if plain_head else ("whole", _OTHER_HEAD)
    return SpeedPlan(loss, compiled, {"loss": loss_reason, "compile": compile_reason})


def compiles_layers(config: SpeedKeys, flops: float, zero_stage: int) -> tuple[bool, str]:
    """Return whether layers are compiled, and why; arguments as for `plan_speed`."""
    if zero_stage == 3:
        return False, _ZERO_3
    if config.compile_layers is not None:
        return config.compile_layers, "as configured"
    if config.use_liger_kernel:  # 358,750 against 379,550 tokens/s, 160m on an H200 (docs/gpu.md)
        return False, "slower with Liger's kernels, which the compiler cannot see through"
    return compile_pays(expected_seconds(flops, config.world_size))


def expected_seconds(flops: float, world_size: int) -> float:
    """Return how long so many FLOPs will take about, over so many ranks like this one's device."""
    return flops / (_EXPECTED_MFU * peak_flops(device_name())[0] * world_size)


def choose_loss(config: SpeedKeys, flops: float, zero_stage: int) -> tuple[LossKind, str]:
    """Return how the loss is computed, and why where it is not the usual way; arguments as for `plan_speed`."""
    if zero_stage == 3:
        return "whole", _ZERO_3
    if config.chunked_loss is not None:
        return "chunked" if config.chunked_loss else "whole", "as configured"
    if config.use_liger_kernel:
        return "whole", "Liger's"
    if has_accelerator() and compiles_layers(config, flops, zero_stage)[0]:
        return "compiled", ""
    return ("chunked", "") if has_chunked_loss() else ("whole", "torch older than 2.13")


def compile_pays(seconds: float) -> tuple[bool, str]:
    """Return whether a run of so many seconds gains by compiling its layers, and why."""
    if missing := missing_compiler():
        return False, f"{missing} is missing"
    if seconds < COMPILE_PAYS_SECONDS["gpu" if has_accelerator() else "cpu"]:
        return False, f"about {seconds:.0f} s of training, too short to pay for it"
    return True, "the run is long enough to pay for it"


def skip_mask(model: "PreTrainedModel") -> None:
    """Keep transformers from searching the position ids for packed sequences in every forward pass, in place.

    The search (`masking_utils.find_packed_sequence_indices`, transformers 5.23) makes the processor wait for the GPU.
    It is left out for an attention that has no mask function: ours is `sdpa` under another name, for calls that have
    neither mask, nor position ids, nor a cache.
    """
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    AttentionInterface.register(_PLAIN_CAUSAL, sdpa_attention_forward)
    base: Any = model.base_model
    plain = base.forward

    @functools.wraps(plain)
    def forward(*args: Any, **kwargs: Any) -> Any:
        given = [name for name in ("attention_mask", "position_ids", "past_key_values") if kwargs.get(name) is not None]
        if given or len(args) > 1 or kwargs.get("use_cache") is not False:
            return plain(*args, **kwargs)
        base.config._attn_implementation = _PLAIN_CAUSAL
        try:
            return plain(*args, **kwargs)
        finally:
            base.config._attn_implementation = "sdpa"

    base.forward = forward


def apply_speed(model: "PreTrainedModel", plan: SpeedPlan) -> None:
    """Apply the plan to a fresh model, in place; its weights, their names and what is saved stay the same."""
    if model.config._attn_implementation == "sdpa":
        skip_mask(model)
    fuse_loss(model, plan.loss)
    if plan.compile_layers:
        # For DDP torch cuts compiled code at its buckets of gradients, to send them early. Layers are compiled one by
        # one already: each would be cut in three, and keep 4 % more memory.
        import torch._dynamo

        torch._dynamo.config.optimize_ddp = False
        # Layer by layer: whole-model compilation with sdpa builds a dense tokens x tokens mask, so attention loses its
        # fast kernel (transformers issue 48925), and one layer compiles once for all.
        layers: Any = model.base_model.layers
        for layer in layers:
            layer.compile()


@contextlib.contextmanager
def eager() -> Iterator[None]:
    """Run compiled layers uncompiled in the block: each shape of evaluation and sampling would be compiled anew."""
    with torch.compiler.set_stance("force_eager"):
        yield


def describe_speed(speed: SpeedPlan, config: Any) -> str:
    """Return which ways of computing are used, and why not the others."""
    loss = {"chunked": "in chunks", "compiled": "compiled with the head", "whole": "whole logits"}[speed.loss]
    compiled = "each layer" if speed.compile_layers else "none"
    reasons = {name: f" ({reason})" if reason else "" for name, reason in speed.reasons.items()}
    return (
        f"attention {config.attn_implementation}, loss {loss}{reasons['loss']}, compile {compiled}{reasons['compile']}"
    )


def zero_stage_of(config: Any) -> int | None:
    """Return the ZeRO stage that accelerate's file asks for, or None without DeepSpeed."""
    plugin: Any = config.deepspeed_plugin
    return None if plugin is None else int(plugin.zero_stage)


def optimizer_of(config: Any) -> OptimizerName:
    """Return what trains the matrices of a run's layers; only pretraining has a choice beside AdamW."""
    found: OptimizerName = getattr(config, "optimizer", "adamw")
    return found


# A forward pass is a third of a step (2 of 6 N FLOPs a token, see `presets.flops_per_token`), and each of about
# eleven evaluations scores a hundredth of the run's tokens (`training.config`, eval_max_tokens), at least 20,000.
_FORWARD_SHARE, _EVALUATIONS, _EVALUATED_SHARE, _LEAST_EVALUATED_TOKENS = 1 / 3, 11, 0.01, 20_000


@dataclass(frozen=True)
class MeasuredSpeed:
    """What the speed test found, over all ranks; `speed_test.json`.

    Attributes:
        tokens_per_second: mean of the steady steps.
        watts: mean power of the machine.
        hardware: the device's name.
        num_ranks: ranks that trained.
        steps: steps that were made.
        tokens_per_step: of the test's steps, which may be fewer than the run's.
        spent_kwh: energy of the test.
        spent_hours: hours that the test took, its start included.
        starting_hours: of them, those until the first step; the run will take as many.
        num_gpus: GPUs that are paid for.
    """

    tokens_per_second: float
    watts: float
    hardware: str
    num_ranks: int
    steps: int
    tokens_per_step: int
    spent_kwh: float = 0.0
    spent_hours: float = 0.0
    starting_hours: float = 0.0
    num_gpus: int = 1


def hours_for(tokens: float, speed: MeasuredSpeed, values: dict[str, Any]) -> float:
    """Return the hours that a run of so many tokens takes, its start and evaluations included; see `tokens_within`."""
    fixed, factor = _evaluating(values)
    return (tokens * factor + fixed) / speed.tokens_per_second / 3600 + speed.starting_hours


def _evaluating(values: dict[str, Any]) -> tuple[float, float]:
    """Return what evaluations add to the tokens of a run: so many tokens' time, and so many times the run's."""
    if values.get("eval_strategy") == "no":
        return 0.0, 1.0
    held_out = packed_manifest(str(values["packed"]))["validation_tokens"]
    fixed = _FORWARD_SHARE * (held_out + _EVALUATIONS * min(_LEAST_EVALUATED_TOKENS, held_out))
    return fixed, 1 + _FORWARD_SHARE * _EVALUATIONS * _EVALUATED_SHARE


def tokens_within(
    caps: dict[str, float], price_usd: float, speed: MeasuredSpeed, values: dict[str, Any]
) -> tuple[float, str]:
    """Return how many tokens the tightest cap pays for, after the speed test, with evaluations, and the cap's key."""
    gone = speed.spent_hours + speed.starting_hours
    hours = {
        "max_hours": lambda cap: cap - gone,
        "max_cost": lambda cap: cap / (price_usd * speed.num_gpus) - gone,
        "max_kwh": lambda cap: (cap - speed.spent_kwh) / (speed.watts / 1000) if speed.watts else float("inf"),
    }
    tightest = min(caps, key=lambda key: hours[key](caps[key]))
    tokens = hours[tightest](caps[tightest]) * 3600 * speed.tokens_per_second
    fixed, factor = _evaluating(values)
    return (tokens - fixed) / factor, tightest
