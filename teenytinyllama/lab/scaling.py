"""The scaling law of a lab: what the runs of an arm let expect of a run that nobody has made, with an interval.

    L(N, D) = E + ((A / N^a)^(1/g) + (B / D^b)^(1/g))^g

in bits per byte of held-out text, for N parameters and D tokens. N counts all parameters: Pearce and Song 2024 (arXiv
2406.12907) found that leaving embeddings out biases the exponents at small scale, and `planning.laws` counts all too.
Tokens that are read again count by `useful_tokens` (Muennighoff et al. 2023, arXiv 2305.16264).

With g = 1 it is the form of Hoffmann et al. 2022 (arXiv 2203.15556), E + A / N^a + B / D^b; with g = b and E = 0 that
of Kaplan et al. 2020 (arXiv 2001.08361, equation 1.5). With g = 1 two sizes are as far apart at any D. Small models on
little text are further apart the more they read, as g below 1 has it: on 12 runs of 0.5M and 0.9M parameters a law with
g was half as far off beyond the runs as one without, and g was 0.35 (docs/lab-log.md).

The fit is approach 3 of Hoffmann et al.: the sum of Huber losses (delta 1e-3) of the residuals of log L, minimised by
L-BFGS from a grid of starts. Besiroglu et al. 2024 (arXiv 2404.10102) found what had gone wrong there: a mean in place
of the sum, which ended the search early, and intervals that were too narrow by far.

A lab of two sizes and four budgets cannot tell six constants apart. So E, a, b and g are drawn towards known values,
weakly (`PRIOR_CENTRES`), and each draw of the bootstrap moves these centres along with the losses: where the runs say
nothing the interval is as wide as the prior, and not as narrow as one fit.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checks import InputError, ensure, ensure_packages
from ..planning.laws import LossLaw, predicted_loss, useful_tokens
from ..stage_folder import parse_record
from .comparison import CONFIDENCE, Cell, Outcome

Floats = NDArray[np.float64]

# Of the residuals of log L; Hoffmann et al. 2022, section 3.3.
HUBER_DELTA = 1e-3
# Centres and standard deviations of log E, a, b and g. Exponents: 0.34 and 0.28 (Hoffmann et al. 2022), 0.348 and 0.366
# (Besiroglu et al. 2024), 0.353 for both (Muennighoff et al. 2023, arXiv 2305.16264). E: 1.69 to 1.87 nats per token
# there, which is 0.6 bits per byte at about four bytes a token. g: between the two published forms. The deviations are
# assumed: they cover what other corpora gave, 0.2 to 0.5 for an exponent, and a factor of 1.6 either way for E.
PRIOR_CENTRES = np.array([math.log(0.6), 0.35, 0.35, 0.6])
PRIOR_DEVIATIONS = np.array([0.5, 0.1, 0.1, 0.3])
_PRIOR_PLACES = np.array([0, 3, 4, 5])  # of log E, a, b and g among the six constants
_PRECISION = np.array([PRIOR_DEVIATIONS[0] ** -2, 1e-9, 1e-9, *PRIOR_DEVIATIONS[1:] ** -2.0])  # of a prior on each
# What the noise of log L is taken to be before it is measured, and how many runs that assumption is worth. Two seeds of
# small models differ by 0.1 to 0.3 %; two of 124M parameters by 0.05 % (modded-nanogpt).
_NOISE, _NOISE_RUNS = 0.002, 2.0
_DRAWS, _STEPS = 300, 60  # of the bootstrap, and of the search in each draw


# The six constants of the search are log E, log of the size term and of the data term at the centre of the runs (the
# means of log N and log D), a, b and g: so the search is well conditioned.
@dataclass(frozen=True)
class _Points:
    """Runs to fit: logarithms of parameters and of useful tokens, less their means, and of the bits per byte."""

    n: Floats
    d: Floats
    y: Floats
    centre_n: float
    centre_d: float

    def plain(self, constants: Floats) -> tuple[float, float, float, float, float, float]:
        """Return E, A, B, a, b, g for the constants of the search."""
        e, size, data, a, b, g = (float(value) for value in constants)
        return math.exp(e), math.exp(size + a * self.centre_n), math.exp(data + b * self.centre_d), a, b, g


def _make_points(num_parameters: Sequence[float], tokens: Sequence[float], scores: Sequence[float]) -> _Points:
    n, d = np.log(np.array(num_parameters, float)), np.log(np.array(tokens, float))
    centre_n, centre_d = float(n.mean()), float(d.mean())
    return _Points(n - centre_n, d - centre_d, np.log(np.array(scores, float)), centre_n, centre_d)


def _log_losses(constants: Floats, points: _Points) -> tuple[Floats, Floats]:
    """Return log L of each run, and its derivatives by the six constants in a last axis.

    Args:
        constants: (6,), or (draws, 6) for as many laws at once.
        points: of the runs.
    """
    e, size, data, a, b, g = (constants[..., place, None] for place in range(6))
    sizes, texts = size - a * points.n, data - b * points.d
    pair = np.logaddexp(sizes / g, texts / g)
    total = np.logaddexp(e, g * pair)
    of_sizes, of_texts = np.exp(sizes / g - pair), np.exp(texts / g - pair)
    both = np.exp(g * pair - total)
    by_size, by_text = both * of_sizes, both * of_texts
    by_g = both * (pair - (sizes * of_sizes + texts * of_texts) / g)
    return total, np.stack([1 - both, by_size, by_text, -by_size * points.n, -by_text * points.d, by_g], axis=-1)


def _objective(constants: Floats, points: _Points, scale: Any, centres: Floats) -> tuple[Any, Floats, Floats]:
    """Return what is minimised (Huber losses over their scale, and the prior's squares), its gradient and curvature.

    The curvature is Gauss and Newton's with Huber's weights. Leading axes are draws, as in `_log_losses`.
    """
    total, slopes = _log_losses(constants, points)
    residuals = total - points.y
    sizes = np.abs(residuals)
    huber = np.where(sizes <= HUBER_DELTA, residuals**2 / 2, HUBER_DELTA * (sizes - HUBER_DELTA / 2))
    steps = (constants[..., _PRIOR_PLACES] - centres) / PRIOR_DEVIATIONS
    weights = 1 / (np.maximum(HUBER_DELTA, sizes) * np.asarray(scale)[..., None])
    gradient = ((weights * residuals)[..., None] * slopes).sum(axis=-2)
    gradient[..., _PRIOR_PLACES] += steps / PRIOR_DEVIATIONS
    curvature = np.swapaxes(slopes, -1, -2) @ (weights[..., None] * slopes) + np.diag(_PRECISION)
    return huber.sum(axis=-1) / (HUBER_DELTA * scale) + (steps**2).sum(axis=-1) / 2, gradient, curvature


def _bounds(points: _Points) -> list[tuple[float, float]]:
    """Return the least and the largest value of each constant of the search."""
    most = float(points.y.max()) + 3
    return [(math.log(0.02), float(points.y.min()) - 1e-3), (-12, most), (-12, most), (0.05, 1.5), (0.05, 1.5),
            (0.15, 1.3)]  # fmt: skip


def _minimise(start: Floats, points: _Points, scale: float) -> tuple[float, Floats]:
    """Return the lowest value that L-BFGS finds from a start, and the constants there."""
    from scipy.optimize import minimize

    found = minimize(lambda constants: _objective(constants, points, scale, PRIOR_CENTRES)[:2], start, jac=True,
                     method="L-BFGS-B", bounds=_bounds(points),
                     options={"maxiter": 2000, "ftol": 1e-13, "gtol": 1e-8})  # fmt: skip
    return float(found.fun), found.x


def _starts(points: _Points) -> Iterator[Floats]:
    """Yield starts of the search: for each pair of exponents the scales by least squares, none negative, and two g."""
    from scipy.optimize import nnls

    losses = np.exp(points.y)
    for a in (0.2, 0.35, 0.6):
        for b in (0.2, 0.35, 0.6):
            terms = np.stack([np.ones_like(losses), np.exp(-a * points.n), np.exp(-b * points.d)], axis=1)
            scales, _ = nnls(terms / losses[:, None], np.ones_like(losses))
            e, size, data = np.log(np.maximum(scales, 0.01 * losses.min()))
            for g in (1.0, 0.5):
                yield np.array([min(e, points.y.min() - 0.01), size, data, a, b, g])


@dataclass(frozen=True)
class _Fit:
    """The constants with the lowest objective, the losses there, the residuals of log L, and what is left of them."""

    constants: Floats
    fitted: Floats
    squares: float
    degrees: float

    @property
    def noise(self) -> float:
        """Return the standard deviation of log L about the law."""
        return math.sqrt((_NOISE_RUNS * _NOISE**2 + self.squares) / (_NOISE_RUNS + self.degrees))

    @property
    def misfit(self) -> float:
        """Return the root mean square of the residuals of log L."""
        return math.sqrt(self.squares / len(self.fitted))


def _fit(points: _Points) -> _Fit:
    """Return the fit; the scale of the residuals and the fit follow from each other in three rounds."""
    starts, noise = list(_starts(points)), _NOISE
    for _ in range(3):
        scale = max(HUBER_DELTA, noise)
        _, constants = min((_minimise(start, points, scale) for start in starts), key=lambda found: found[0])
        fitted, slopes = _log_losses(constants, points)
        known = slopes.T @ slopes / scale**2
        used = float(np.trace(known @ np.linalg.inv(known + np.diag(_PRECISION))))  # constants that runs decide
        squares = float(((points.y - fitted) ** 2).sum())
        fit = _Fit(constants, fitted, squares, max(1.0, len(points.y) - used))
        noise, starts = fit.noise, [constants]
    return fit


def _bootstrap(fit: _Fit, points: _Points, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Return constants fitted to drawn losses under drawn priors, (draws, 6), and the noise that was drawn, (draws,).

    All draws are fitted at once by damped Gauss-Newton steps from the fit, with Huber's weights: L-BFGS would find the
    same constants one draw after another.
    """
    squares = _NOISE_RUNS * _NOISE**2 + fit.squares
    noise = np.sqrt(squares / rng.chisquare(_NOISE_RUNS + fit.degrees, _DRAWS))
    drawn = replace(points, y=fit.fitted + noise[:, None] * rng.standard_normal((_DRAWS, len(points.y))))
    centres = PRIOR_CENTRES + PRIOR_DEVIATIONS * rng.standard_normal((_DRAWS, 4))
    scale, bounds = np.maximum(HUBER_DELTA, noise), np.array(_bounds(points)).T
    constants, damping = np.tile(fit.constants, (_DRAWS, 1)), np.full(_DRAWS, 1e-2)
    value, gradient, curvature = _objective(constants, drawn, scale, centres)
    for _ in range(_STEPS):
        held = curvature + damping[:, None, None] * np.eye(6) * np.diagonal(curvature, axis1=1, axis2=2)[:, None, :]
        moved = np.clip(constants - np.linalg.solve(held, gradient[..., None])[..., 0], *bounds)
        tried = _objective(moved, drawn, scale, centres)
        better = tried[0] <= value
        damping = np.where(better, damping / 3, damping * 4).clip(1e-9, 1e9)
        constants = np.where(better[:, None], moved, constants)
        value, gradient = np.where(better, tried[0], value), np.where(better[:, None], tried[1], gradient)
        curvature = np.where(better[:, None, None], tried[2], curvature)
    return constants, noise


@dataclass(frozen=True)
class LawFit:
    """A law fitted to runs.

    Attributes:
        constants: E, A, B, a, b, g.
        noise: standard deviation of log L of a run about the law.
        misfit: root mean square of the residuals of log L.
        draws: of the bootstrap, each E, A, B, a, b, g and the noise.
    """

    constants: tuple[float, float, float, float, float, float]
    noise: float
    misfit: float
    draws: list[list[float]]


def fit_constants(
    num_parameters: Sequence[float], tokens: Sequence[float], scores: Sequence[float], seed: int = 0
) -> LawFit:
    """Return the law of some runs.

    Args:
        num_parameters: N of each run.
        tokens: D of each run, in new tokens; see `useful_tokens`.
        scores: bits per byte of each run.
        seed: of the bootstrap.
    """
    points = _make_points(num_parameters, tokens, scores)
    fit = _fit(points)
    rng = np.random.default_rng(seed)
    draws = [[*points.plain(drawn), float(noise)] for drawn, noise in zip(*_bootstrap(fit, points, rng), strict=True)]
    return LawFit(points.plain(fit.constants), fit.noise, fit.misfit, draws)


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
