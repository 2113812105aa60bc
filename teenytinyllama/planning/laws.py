"""Scaling laws: the loss to expect of a size and an amount of data, and what finished runs measured instead.

Absolute losses do not transfer between tokenizers and corpora: the two TeenyTinyLlama baselines ended at 2.798 and
2.466 nats per token (arXiv 2401.16640), where the refitted law predicts 3.18 and 2.74. Differences transfer roughly:
0.333 was measured there, 0.435 is predicted. So a law is used to rank plans. Finished runs of one's own (`--calibrate`)
move its losses onto their corpus, and replace the assumed speed and power.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checks import InputError, ensure
from ..energy.emissions import read_emissions
from ..energy.ledger import Account, read_ledger
from ..gpus import find_gpu
from ..presets import training_flops
from ..stage_folder import (
    EMISSIONS_NAME,
    ENVIRONMENT_NAME,
    MANIFEST_NAME,
    METRICS_NAME,
    read_jsonl_records,
    read_manifest,
)
from .memory import mean_step_speed


@dataclass(frozen=True)
class LossLaw:
    """L(N, D) = E + A / N^alpha + B / D^beta: nats per token of a model of N parameters trained on D tokens.

    With a `coupling` g below 1 the last two terms are ((A / N^alpha)^(1/g) + (B / D^beta)^(1/g))^g, see `lab.scaling`.

    Attributes:
        title: name of the law in tables.
        irreducible: E, in nats.
        size_scale: A.
        data_scale: B.
        size_exponent: alpha.
        data_exponent: beta.
        source: where the constants are from.
        repeats: whether the law counts a repeated token for less than a new one.
        surplus: with `repeats`, whether parameters that are too many for the unique tokens count for less.
        coupling: g.
    """

    title: str
    irreducible: float
    size_scale: float
    data_scale: float
    size_exponent: float
    data_exponent: float
    source: str
    repeats: bool = False
    surplus: bool = True
    coupling: float = 1.0

    @property
    def balance(self) -> float:
        """Return G = (alpha A / (beta B))^(1 / (alpha + beta)), the constant of the compute-optimal split.

        A coupled law is lowest where the sum inside its bracket is, whose exponents and scales are those to the 1/g.
        """
        scales, exponents = self.size_scale / self.data_scale, self.size_exponent / self.data_exponent
        return float((exponents**self.coupling * scales) ** (1 / (self.size_exponent + self.data_exponent)))


LAWS: dict[str, LossLaw] = {
    "hoffmann": LossLaw(
        "printed", 1.69, 406.4, 410.7, 0.34, 0.28, "Hoffmann et al. 2022 (arXiv 2203.15556), equation 10, as printed"
    ),
    "hoffmann_tex": LossLaw(
        "TeX",
        1.6934,
        406.4,
        410.7,
        0.3392,
        0.2849,
        "the same, with the digits of its TeX source (in arXiv 2404.10102)",
    ),
    "besiroglu": LossLaw(
        "refit",
        1.8172,
        482.01,
        2085.43,
        0.3478,
        0.3658,
        "Besiroglu et al. 2024 (arXiv 2404.10102), refitted to the same runs",
    ),
    "muennighoff": LossLaw(
        "repeats",
        math.exp(0.6254804),
        math.exp(6.255414),
        math.exp(7.3049974),
        0.3526596,
        0.3526596,
        "Muennighoff et al. 2023 (arXiv 2305.16264), data-constrained, C4",
        repeats=True,
    ),
}

# What the laws were fitted to: "over 400 language models ranging from 70 million to over 16 billion parameters on 5 to
# 500 billion tokens" (Hoffmann et al. 2022, abstract; the refit is of the same runs).
FITTED_PARAMETERS, FITTED_TOKENS = (70e6, 16e9), (5e9, 500e9)
# Tokens a parameter beyond which nobody has measured that a model goes on learning. Source: Sardana et al. 2023, Beyond
# Chinchilla-Optimal (arXiv 2401.00448): "up to 10,000".
MOST_TOKENS_PER_PARAMETER = 10_000

# How fast repeated tokens and surplus parameters lose their worth. Source: huggingface/datablations, README
# (Muennighoff et al., arXiv 2305.16264, equations 5 and 6).
_REPEATED_TOKENS_WORTH, _SURPLUS_PARAMETERS_WORTH = 15.387756, 5.309743


def predicted_loss(law: LossLaw, num_parameters: float, tokens: float, unique_tokens: float | None = None) -> float:
    """Return the predicted loss in nats per token.

    Args:
        law: a value of `LAWS`.
        num_parameters: all parameters, embeddings too.
        tokens: tokens trained on, repeated ones each time.
        unique_tokens: different tokens in the data; None: no token is repeated. Laws without `repeats` count a
            repeated token like a new one.
    """
    if law.repeats:
        unique = min(tokens if unique_tokens is None else unique_tokens, tokens)
        num_parameters = effective_parameters(law, num_parameters, unique) if law.surplus else num_parameters
        tokens = unique * effective_epochs(tokens / unique)
    size_term = law.size_scale / num_parameters**law.size_exponent
    data_term = law.data_scale / tokens**law.data_exponent
    g = law.coupling
    return float(
        law.irreducible + (size_term + data_term if g == 1 else (size_term ** (1 / g) + data_term ** (1 / g)) ** g)
    )


def effective_epochs(epochs: float) -> float:
    """Return how many epochs of new tokens are worth as much as so many epochs of the same tokens."""
    repeats = max(epochs - 1, 0.0)
    worth = _REPEATED_TOKENS_WORTH * (1 - math.exp(-repeats / _REPEATED_TOKENS_WORTH))
    return min(epochs, 1.0) + worth


def useful_tokens(tokens: float, unique_tokens: float | None) -> float:
    """Return how many new tokens are worth as much as so many tokens of which some are read again."""
    if unique_tokens is None or unique_tokens >= tokens:
        return tokens
    return unique_tokens * effective_epochs(tokens / unique_tokens)


def effective_parameters(law: LossLaw, num_parameters: float, unique_tokens: float) -> float:
    """Return the parameters that count: those that are too many for the unique tokens count for less."""
    feedable = (unique_tokens * law.balance) ** (law.data_exponent / law.size_exponent) * law.balance
    fed = min(num_parameters, feedable)
    surplus = num_parameters / fed - 1
    worth = _SURPLUS_PARAMETERS_WORTH * (1 - math.exp(-surplus / _SURPLUS_PARAMETERS_WORTH))
    return float(fed * (1 + worth))


def optimum(law: LossLaw, compute_flops: float) -> tuple[float, float]:
    """Return the parameters and the tokens, all new, with the lowest loss for C = 6 N D FLOPs.

    N = G (C / 6)^(beta / (alpha + beta)), D = C / (6 N). Source: Hoffmann et al. (arXiv 2203.15556), equation 4.
    """
    share = law.data_exponent / (law.size_exponent + law.data_exponent)
    num_parameters = law.balance * (compute_flops / 6) ** share
    return num_parameters, compute_flops / 6 / num_parameters


def unique_optimum(law: LossLaw, compute_flops: float, unique_tokens: float) -> tuple[float, float]:
    """Return the parameters and the tokens with the lowest loss for C = 6 N D FLOPs when tokens have to be repeated.

    There is no closed form: sizes from a thirtieth to thirty times that for new tokens are tried in steps of 1 %.
    """
    fresh, _ = optimum(law, compute_flops)
    sizes = [fresh * 1.01**step for step in range(-342, 343)]
    best = min(sizes, key=lambda size: predicted_loss(law, size, compute_flops / 6 / size, unique_tokens))
    return best, compute_flops / 6 / best


CPU = "cpu"
_FIX = "Give the output_dir of a finished `ttl pretrain`."
# A run of fewer tokens a parameter is far from the runs that the laws were fitted to, and its loss still falls fast: it
# says nothing about the loss of a long run.
LEAST_TOKENS_PER_PARAMETER = 1.0
# Least difference in nats between predictions for runs that a slope is fitted to. Two seeds of one design differ by
# 0.0013 to 0.0019 nats (124M at a loss of 3.28, modded-nanogpt), which is an error of 4 % in a slope over 0.05 nats.
_LEAST_DIFFERENCE = 0.05


@dataclass(frozen=True)
class MeasuredRun:
    """What a plan uses of a finished run.

    Attributes:
        folder: the run's folder.
        hardware: name of the device.
        gpu: key of the device in `gpus.GPUS`, its name if it is another GPU, or `cpu`.
        num_gpus: number of ranks that trained.
        flops_per_second: of one rank in the mean step, by 6 N + 12 L h T.
        tokens_per_second: of all ranks in the mean step.
        overall_tokens_per_second: of all ranks over the whole time, with evaluations, saves and the start.
        outside_seconds: time of neither steps nor the start, without what was done again after a kill.
        starting_seconds: time until the energy meter ran.
        scores_by_length: whether an evaluation scores a share of the run's tokens and not a given number of tokens.
        precision: precision of the training.
        memory_bytes: free memory of the device when the run started; None: not known.
        watts: power of one rank with its share of the host; None: not measured.
        num_parameters: of the model.
        tokens: tokens trained on.
        unique_tokens: tokens of the data.
        loss: loss at the end, in nats per token.
        loss_name: on what that loss was measured, for readers.
        tokenizer_sha256: hash of the tokenizer.
    """

    folder: str
    hardware: str
    gpu: str
    num_gpus: int
    flops_per_second: float
    tokens_per_second: float
    overall_tokens_per_second: float
    outside_seconds: float
    starting_seconds: float
    scores_by_length: bool
    precision: str
    memory_bytes: float | None
    watts: float | None
    num_parameters: int
    tokens: int
    unique_tokens: int
    loss: float
    loss_name: str
    tokenizer_sha256: str

    @property
    def tokens_per_parameter(self) -> float:
        """Return the tokens trained on for each parameter."""
        return self.tokens / self.num_parameters

    def predicted(self, law: LossLaw) -> float:
        """Return the loss that a law predicts for this run, in nats per token."""
        return predicted_loss(law, self.num_parameters, self.tokens, min(self.tokens, self.unique_tokens))


@dataclass(frozen=True)
class LossFit:
    """How the losses on a corpus follow from those of a law: slope x prediction + offset, in nats per token."""

    slope: float
    offset: float

    def __call__(self, predicted: float) -> float:
        """Return the loss to expect on the corpus where the law predicts `predicted`."""
        return self.slope * predicted + self.offset


def read_run(folder: str, watts_given: bool) -> MeasuredRun:
    """Return what a finished pretraining measured.

    Args:
        folder: the output_dir of the pretraining.
        watts_given: whether the user gives the power, so that the run's energy need not be known.

    Raises:
        InputError: no folder, not finished, not a pretraining, no speed, or no energy.
    """
    path = Path(folder)
    ensure(
        (path / MANIFEST_NAME).is_file() or not (path / ENVIRONMENT_NAME).is_file(),
        f"calibrate={folder}: is not finished: it has no {MANIFEST_NAME} yet. Run its command again to the end.",
    )
    manifest = read_manifest("calibrate", folder, "pretrain", _FIX)
    try:
        model, training = manifest["model"], manifest["training"]
        num_gpus, tokens = int(training["world_size"]), training["tokens"]
        ensure(
            training["tokens_per_second"],
            f"calibrate={folder}: {MANIFEST_NAME} has no tokens_per_second: nothing was logged. {_FIX}",
        )
        account = read_ledger(path)
        seconds, starting = _seconds(path, training, account)
        speed = _steps_speed(path, training, tokens / seconds)
        flops = training_flops(
            model["num_parameters"], model["num_hidden_layers"], model["hidden_size"], model["context"]
        )
        loss, loss_name = _final_loss(manifest)
        hardware = str(training["hardware"])
        gpu = _gpu_name(training)
        return MeasuredRun(
            folder=folder,
            hardware=hardware,
            gpu=gpu,
            num_gpus=num_gpus,
            flops_per_second=speed * flops / num_gpus,
            tokens_per_second=speed,
            overall_tokens_per_second=tokens / (seconds + starting),
            outside_seconds=max(0.0, seconds - tokens / speed),
            starting_seconds=starting,
            scores_by_length=(manifest.get("config") or {}).get("eval_max_tokens") is None,
            precision=str(training["precision"]),
            memory_bytes=_free_bytes(path / ENVIRONMENT_NAME),
            watts=None if watts_given else _measured_watts(path, num_gpus, on_gpu=gpu != CPU),
            num_parameters=model["num_parameters"],
            tokens=tokens,
            unique_tokens=manifest["data"]["train_tokens"],
            loss=loss,
            loss_name=loss_name,
            tokenizer_sha256=manifest["data"]["tokenizer_sha256"],
        )
    except (KeyError, TypeError) as error:
        raise InputError(f"calibrate={folder}: {MANIFEST_NAME} lacks what a plan needs ({error!r}). {_FIX}") from error


def _gpu_name(training: dict[str, Any]) -> str:
    hardware = str(training["hardware"])
    found = find_gpu(hardware)
    if found is not None:
        return found[0]
    return hardware if training.get("peak_gpu_memory_gb") else CPU


def _free_bytes(environment: Path) -> float | None:
    """Return the free memory that a run's `environment.json` has from its start; None if it has none."""
    if not environment.is_file():
        return None
    try:
        return float(json.loads(environment.read_text(encoding="utf-8"))["micro_batch"]["free_bytes"])
    except (ValueError, KeyError, TypeError):
        return None


def _final_loss(manifest: dict[str, Any]) -> tuple[float, str]:
    """Return the loss at the end of a run in nats per token, on held-out text where there is some, and its name."""
    held_out = manifest["results"]["final"]
    if isinstance(held_out, dict) and "nats_per_token" in held_out:
        return float(held_out["nats_per_token"]), "held-out text"
    return float(manifest["training"]["last_loss"]), "its last training steps"


def _measured_watts(folder: Path, num_gpus: int, on_gpu: bool) -> float:
    """Return the mean power of one rank over a run in watts, with its share of the host, without the building's (PUE).

    Raises:
        InputError: there is no measurement, or codecarbon saw no GPU where there was one.
    """
    fix = "Give --watts, the power of one GPU with its share of the host."
    total = read_emissions(folder / EMISSIONS_NAME)
    if total is None:
        raise InputError(f"calibrate={folder}: has no {EMISSIONS_NAME} with rows, so its power is not known. {fix}")
    ensure(
        total.energy_kwh > 0 and total.duration_seconds > 0,
        f"calibrate={folder}: {EMISSIONS_NAME} has {total.energy_kwh} kWh in {total.duration_seconds} s, so its power "
        f"is not known. {fix}",
    )
    ensure(
        total.gpu_kwh > 0 or not on_gpu,
        f"calibrate={folder}: {EMISSIONS_NAME} has no energy of the GPU (codecarbon could not ask it), so its power is "
        f"not known. {fix}",
    )
    return 1000 * total.machine_kwh / (total.duration_seconds / 3600) / num_gpus  # kWh of all machines, hours of one


def _seconds(folder: Path, training: dict[str, Any], account: Account | None) -> tuple[float, float]:
    """Return the seconds of a run's useful work that its meter measured, and the seconds of its start before.

    Steps that were done again after a kill, and speed tests, are left out by their share of the energy. Without a
    ledger all of the measured time counts; without any measurement the time follows from the run's mean speed.
    """
    total = read_emissions(folder / EMISSIONS_NAME)
    seconds = total.duration_seconds if total else training.get("seconds") or 0.0
    if not seconds:
        return training["tokens"] / training["tokens_per_second"], 0.0
    if account is None or account.total.energy_kwh <= 0:
        return seconds, 0.0
    runs = [start for start in account.starts if start.machine == 0 and not start.is_speed_test]
    return seconds * account.useful_kwh / account.total.energy_kwh, runs[-1].starting_seconds if runs else 0.0


def _steps_speed(folder: Path, training: dict[str, Any], overall: float) -> float:
    """Return the mean tokens/s of a run's steps, from its manifest or, if an older version wrote that, its metrics.

    Without metrics that can be read it is the speed over all of the run's time, which is lower.
    """
    if training.get("steps_tokens_per_second"):
        return float(training["steps_tokens_per_second"])
    try:
        mean = mean_step_speed(read_jsonl_records(folder / METRICS_NAME, fix="Restore the file from a copy."))
    except (InputError, KeyError, TypeError):
        return overall
    return mean or overall


def choose_run(runs: list[MeasuredRun], gpu: str, num_gpus: int) -> MeasuredRun | None:
    """Return the run whose speed and watts a plan for these GPUs uses, or None.

    Of the runs on such a GPU it is the one with the largest model; of several of that size, one on as many GPUs.
    """
    of_this = [run for run in runs if run.gpu == gpu]
    return max(of_this, key=lambda run: (run.num_parameters, run.num_gpus == num_gpus), default=None)


def fit_losses(runs: list[MeasuredRun]) -> dict[str, LossFit]:
    """Return for each law how the losses on the runs' corpus follow from it; an empty result if no run counts.

    Runs below `LEAST_TOKENS_PER_PARAMETER` do not count. One run gives an offset, several the line of least squares.

    Raises:
        InputError: tokenizers differ, or the runs are too alike or too noisy for a slope.
    """
    long = [run for run in runs if run.tokens_per_parameter >= LEAST_TOKENS_PER_PARAMETER]
    names = ", ".join(run.folder for run in long)
    ensure(
        len({run.tokenizer_sha256 for run in long}) <= 1,
        f"calibrate={names}: have different tokenizers, so their losses per token cannot be compared. Give runs of one "
        "tokenizer.",
    )
    if not long:
        return {}
    return {name: _fit(law, long, names) for name, law in LAWS.items()}


def _fit(law: LossLaw, runs: list[MeasuredRun], names: str) -> LossFit:
    predicted = [run.predicted(law) for run in runs]
    mean_predicted = sum(predicted) / len(runs)
    mean_loss = sum(run.loss for run in runs) / len(runs)
    if len(runs) == 1:
        return LossFit(1.0, mean_loss - mean_predicted)
    slope = 0.0
    if max(predicted) - min(predicted) >= _LEAST_DIFFERENCE:
        slope = sum((x - mean_predicted) * (run.loss - mean_loss) for x, run in zip(predicted, runs, strict=True))
        slope /= sum((x - mean_predicted) ** 2 for x in predicted)
    ensure(
        slope > 0,
        f"calibrate={names}: give no slope: their losses do not fall where the law's do, or size and length are too "
        "alike. Give runs that differ in size or in tokens, or one run.",
    )
    return LossFit(slope, mean_loss - slope * mean_predicted)
