"""The scaling law of a lab: what the runs of an arm let expect of a run that nobody has made, with an interval.

L(N, D) = E + ((A / N^a)^(1/g) + (B / D^b)^(1/g))^g in bits per byte of held-out text, for N parameters and D tokens;
`fitting` says how it is fitted. N counts all parameters: Pearce and Song 2024 (arXiv 2406.12907) found that leaving
embeddings out biases the exponents at small scale, and the published laws of `planning.laws` count all. Tokens that are
read again count by `effective_epochs` (Muennighoff et al. 2023, arXiv 2305.16264).
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from ..checks import InputError, ensure, ensure_packages
from ..planning.laws import LossLaw, effective_epochs, predicted_loss
from ..stage_folder import parse_record, write_json
from .comparison import CONFIDENCE, Cell, Outcome, best_cells
from .fitting import fit_constants

LAW_NAME = "law.json"
FORM = "L(N, D) = E + ((A / N^a)^(1/g) + (B / D^b)^(1/g))^g, N all parameters, D tokens"
# How fast the form itself goes wrong beyond the runs: standard deviation of log L a factor of e in N or D. Assumed; it
# matters only where the constants are known well.
_DRIFT = 0.0015
# A noise of log L that seeds do not explain: those of small models differ by 0.1 to 0.3 %.
ROUGH_NOISE = 0.01
_NOISES = 20  # drawn for each draw of the bootstrap in a prediction
# The least that a law is fitted to, and the fewest steps of a run that counts.
LEAST_RUNS, LEAST_SIZES, LEAST_BUDGETS, LEAST_STEPS = 6, 2, 3, 100
_FIX = "Give the lab more sizes, budgets or steps, and run `ttl lab` again."


@dataclass(frozen=True)
class Prediction:
    """What a lab's law expects of a run, with the ends of the interval of 90 %.

    Attributes:
        arm: whose law it is.
        bits_per_byte: of held-out text.
        low: lower end of its interval, which holds seeds, the constants' uncertainty and the form's.
        high: upper end.
        bytes_per_token: of the lab's rows; nats per token = bits per byte x ln 2 x bytes per token.
        times_parameters: parameters over those of the lab's largest model.
        times_tokens: tokens over those of the longest run of that model.
        noise: standard deviation of log L of a run about the law.
    """

    arm: str
    bits_per_byte: float
    low: float
    high: float
    bytes_per_token: float
    times_parameters: float
    times_tokens: float
    noise: float

    @property
    def nats_per_token(self) -> tuple[float, float, float]:
        """Return the expected loss and the ends of its interval, in nats per token of the lab's rows."""
        factor = math.log(2) * self.bytes_per_token
        return self.bits_per_byte * factor, self.low * factor, self.high * factor


@dataclass(frozen=True)
class LabLaw:
    """The law of one arm of a lab, in bits per byte.

    Attributes:
        arm: group of arms that it was fitted to; of several learning rates the best at each size and budget.
        irreducible: E.
        size_scale: A.
        data_scale: B.
        size_exponent: a.
        data_exponent: b.
        coupling: g.
        noise: standard deviation of log L of a run about the law, seeds and the form's misfit together.
        draws: of the bootstrap, each E, A, B, a, b, g and the noise of log L.
        runs: names of the runs that it was fitted to.
        left_out: names of the arm's runs that it was not fitted to, each with the reason.
        bytes_per_token: of the held-out text.
        parameters: fewest and most of the runs, all parameters.
        tokens: fewest of the runs, and most of the largest model's runs.
        misfit_all: root mean square of the residuals of log L, N being all parameters as in this law.
        misfit_non_embedding: the same of a law whose N leaves out the input embedding and the head.
    """

    arm: str
    irreducible: float
    size_scale: float
    data_scale: float
    size_exponent: float
    data_exponent: float
    coupling: float
    noise: float
    draws: list[list[float]]
    runs: list[str]
    left_out: dict[str, str]
    bytes_per_token: float
    parameters: tuple[int, int]
    tokens: tuple[int, int]
    misfit_all: float
    misfit_non_embedding: float

    def bits_per_byte(self, num_parameters: float, tokens: float, unique_tokens: float | None = None) -> float:
        """Return the expected bits per byte of a run.

        Args:
            num_parameters: all parameters.
            tokens: trained on.
            unique_tokens: different tokens of the rows; None: all are different.
        """
        return predicted_loss(self._law(1.0), num_parameters, tokens, unique_tokens)

    def predict(self, num_parameters: float, tokens: float, unique_tokens: float | None = None) -> Prediction:
        """Return what to expect of a run, with an interval of 90 % for its score; see `bits_per_byte`."""
        data = useful_tokens(tokens, unique_tokens)
        e, size, scale, a, b, g, noise = np.array(self.draws).T
        log_losses = np.log(e + ((size / num_parameters**a) ** (1 / g) + (scale / data**b) ** (1 / g)) ** g)
        times = num_parameters / self.parameters[1], tokens / self.tokens[1]
        nearest = self.parameters[0] / num_parameters, self.tokens[0] / tokens
        beyond = sum(math.log(max(1.0, up, down)) ** 2 for up, down in zip(times, nearest, strict=True))
        deviations = np.sqrt(noise**2 + _DRIFT**2 * beyond)
        shocks = np.random.default_rng(0).standard_normal((_NOISES, len(deviations)))
        low, high = np.quantile(log_losses + deviations * shocks, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        expected = self.bits_per_byte(num_parameters, tokens, unique_tokens)
        return Prediction(self.arm, expected, math.exp(low), math.exp(high), self.bytes_per_token, *times, self.noise)

    def in_nats(self) -> LossLaw:
        """Return the law in nats per token of the lab's rows, for a plan."""
        return self._law(math.log(2) * self.bytes_per_token)

    def _law(self, factor: float) -> LossLaw:
        """Return the law with losses times a factor."""
        scales = (self.irreducible * factor, self.size_scale * factor, self.data_scale * factor)
        source = f"fitted to {len(self.runs)} runs of {self.arm}"
        return LossLaw("lab", *scales, self.size_exponent, self.data_exponent, source, repeats=True, surplus=False,
                       coupling=self.coupling)  # fmt: skip


def rough_law(noise: float) -> str:
    """Return what to do about a law that its own runs do not follow."""
    return (
        f"the lab's runs lie {100 * noise:.1f} % about this law, and seeds differ by 0.1 to 0.3 %. Leave out budgets "
        "of so few tokens that the loss does not fall by a power law yet, or sweep the learning rate at each budget."
    )


def useful_tokens(tokens: float, unique_tokens: float | None) -> float:
    """Return how many new tokens are worth as much as so many tokens of which some are read again."""
    if unique_tokens is None or unique_tokens >= tokens:
        return tokens
    return unique_tokens * effective_epochs(tokens / unique_tokens)


def fit_law(arm: str, cells: Sequence[Cell], seed: int = 0) -> LabLaw:
    """Return the law of an arm.

    Args:
        arm: its name.
        cells: its best cell at each size and budget.
        seed: of the bootstrap.

    Raises:
        InputError: too few runs, sizes or budgets, or scipy is missing; the message says what there is.
    """
    ensure_packages("lab", "scipy")
    runs = [run for cell in cells for run in cell.done]
    left_out = {run.name: f"{_steps(run):,.0f} steps, fewer than {LEAST_STEPS}"
                for run in runs if _steps(run) < LEAST_STEPS}  # fmt: skip
    runs = [run for run in runs if run.name not in left_out]
    sizes, budgets = {run.size for run in runs}, {run.budget for run in runs}
    ensure(
        len(runs) >= LEAST_RUNS and len(sizes) >= LEAST_SIZES and len(budgets) >= LEAST_BUDGETS,
        f"arm {arm}: {len(runs)} runs of {len(sizes)} sizes and {len(budgets)} budgets are too few for a law, which "
        f"takes {LEAST_RUNS} of {LEAST_SIZES} sizes and {LEAST_BUDGETS} budgets, each of at least {LEAST_STEPS} steps"
        f"{f' ({len(left_out)} have fewer)' if left_out else ''}. {_FIX}",
    )
    tokens = [useful_tokens(run.tokens or 1, run.unique_tokens) for run in runs]
    scores = [run.bits_per_byte or 1.0 for run in runs]
    parameters = [run.num_parameters or 1 for run in runs]
    fit = fit_constants(parameters, tokens, scores, seed)
    other = fit_constants([run.num_non_embedding or 1 for run in runs], tokens, scores, seed)
    e, size, data, a, b, g = fit.constants
    lengths = [run.tokens or 1 for run in runs]
    longest = max(length for length, count in zip(lengths, parameters, strict=True) if count == max(parameters))
    return LabLaw(
        arm=arm,
        irreducible=e,
        size_scale=size,
        data_scale=data,
        size_exponent=a,
        data_exponent=b,
        coupling=g,
        noise=fit.noise,
        draws=fit.draws,
        runs=[run.name for run in runs],
        left_out=left_out,
        bytes_per_token=fmean((run.loss or 0.0) / (run.bits_per_byte or 1.0) / math.log(2) for run in runs),
        parameters=(min(parameters), max(parameters)),
        tokens=(min(lengths), longest),
        misfit_all=fit.misfit,
        misfit_non_embedding=other.misfit,
    )


def _steps(run: Outcome) -> float:
    return (run.tokens or 0) / run.tokens_per_step if run.tokens_per_step else math.inf


def fit_laws(cells: Sequence[Cell]) -> tuple[dict[str, LabLaw], dict[str, str]]:
    """Return the law of each arm of a lab, and why the other arms have none."""
    laws, refused = {}, {}
    for arm, members in best_cells(cells).items():
        try:
            laws[arm] = fit_law(arm, members)
        except InputError as error:
            refused[arm] = str(error)
    return laws, refused


def write_laws(folder: Path, laws: dict[str, LabLaw], refused: dict[str, str]) -> None:
    """Write `law.json`: the laws by arm, why other arms have none, and the arm whose law a plan uses.

    That is the arm which its law expects to score best at the lab's largest size and budget.
    """
    chosen = None
    if laws:
        parameters = max(law.parameters[1] for law in laws.values())
        tokens = max(law.tokens[1] for law in laws.values())
        chosen = min(laws, key=lambda arm: laws[arm].bits_per_byte(parameters, tokens))
    content = {"arm": chosen, "unit": "bits per byte", "form": FORM,
               "laws": {arm: asdict(law) for arm, law in laws.items()}, "refused": refused}  # fmt: skip
    write_json(folder / LAW_NAME, content)


def read_law(folder: Path, arm: str | None = None, key: str = "calibrate") -> LabLaw:
    """Return a law of a lab.

    Args:
        folder: of the lab.
        arm: whose law; None: of the one that scores best.
        key: the config key that names the folder.

    Raises:
        InputError: the lab has no law, with the reason; no arm of that name; or the file is damaged.
    """
    path = folder / LAW_NAME
    ensure(path.is_file(), f"{key}={folder}: has no {LAW_NAME} yet. Run `ttl lab` to its end.")
    try:
        content: dict[str, Any] = parse_record(path.read_bytes())
        laws, refused = content["laws"], content["refused"]
        name = arm or content["arm"]
        reasons = " ".join(refused.values()) or "It has no runs that are done."
        ensure(laws, f"{key}={folder}: has no law. {reasons}")
        ensure(name in laws, f"{key}={folder}: has no law of arm {name}. {refused.get(name, '')}"
               f"It has laws of {', '.join(laws)}.")  # fmt: skip
        values = laws[name]
        return LabLaw(**{**values, "parameters": tuple(values["parameters"]), "tokens": tuple(values["tokens"])})
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{key}={folder}: {LAW_NAME} is damaged ({error!r}). Run `ttl lab` again.") from error
