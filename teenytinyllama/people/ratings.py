"""Figures of a comparison's votes: win rates of pairs, strengths (Bradley-Terry), rates, and how sure each one is.

Votes are no independent draws: one person gives many, and many are about one prompt. Both people and prompts are
samples of those that could have been asked, and other people and prompts would have given other figures. An interval
therefore adds up what comes of people and what comes of prompts:

    variance = variance between people + variance between prompts - variance of single votes

(Cameron, Gelbach and Miller 2011, "Robust Inference With Multiway Clustering", equation 2.11; each of the first two
holds that of single votes once, so it is taken off once.) It is never taken to be below one of the three, because the
difference can come out too small by chance. Each of the three is measured by a bootstrap with random weights (Owen and
Eckles 2012, "Bootstrapping data arrays of arbitrary order"), which works for a fitted strength as it does for a mean.
With five people a variance is itself uncertain, so that quantiles of the normal distribution would give intervals that
are too narrow: those of Student's t are used. `benchmarks/people_coverage.py` shows what that holds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checks import ensure, ensure_packages
from .votes import CHOICES, MARKS

NUM_DRAWS = 1000  # of each bootstrap: a standard error is then known to about 1 / sqrt(2 * 1000) = 2 %
MOST_VOTES = 10_000  # that `votes_until_decided` looks ahead
_PRIOR = 0.5  # votes, shared equally, that each pair of systems has beforehand: no strength is infinite
_ELO = 400 / math.log(10)  # Elo's points for a factor e in the odds (400 points are odds of ten to one)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Ballot:
    """One person's judgement of one pair of answers.

    Attributes:
        voter: nickname.
        prompt: its id.
        kind: of the prompt.
        left: system whose answer stood on the left.
        right: system whose answer stood on the right.
        choice: one of `CHOICES`.
        repeat: whether the person had judged the pair before; such ballots measure constancy, no strength.
        marks: of `left` and `right`, each of `MARKS`: what the answer is bad in.
    """

    voter: str
    prompt: str
    kind: str
    left: str
    right: str
    choice: str
    repeat: bool = False
    marks: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())

    @property
    def pair(self) -> tuple[str, str]:
        """Return the two systems in alphabetical order."""
        return (self.left, self.right) if self.left < self.right else (self.right, self.left)

    @property
    def points(self) -> float:
        """Return what the system on the left won: 1, 0, or half a win for a tie of either sort."""
        return {"left": 1.0, "right": 0.0}.get(self.choice, 0.5)

    @property
    def pair_points(self) -> float:
        """Return what the first system of `pair` won."""
        return self.points if self.left < self.right else 1.0 - self.points


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval.

    Attributes:
        value: a share from 0 to 1, or points of Elo.
        low: lower end of the interval.
        high: upper end.
        votes: that it is of.
        people: who gave them; with one person the interval is of other prompts for the same person.
        prompts: that they are about.
    """

    value: float
    low: float
    high: float
    votes: int
    people: int
    prompts: int


@dataclass(frozen=True)
class PairRating:
    """Two systems side by side.

    Attributes:
        first: a system.
        second: the other.
        win_rate: share of the votes that `first` won, a tie as half a win.
        wins: votes for `first`, for `second`, for both good and for both bad.
        more_votes: how many more of such votes decide the pair; 0 where it is decided, None for more than `MOST_VOTES`.
        needs_people: whether the variance between people alone leaves it open: more votes of the same people, however
            many, would not decide it.
    """

    first: str
    second: str
    win_rate: Estimate
    wins: tuple[int, int, int, int]
    more_votes: int | None
    needs_people: bool


@dataclass(frozen=True)
class SystemRating:
    """One system among all.

    Attributes:
        name: of the system.
        share: expected share of wins against the others, each met equally often, by the fitted strengths.
        points: strength on Elo's scale; the mean of all systems is 0.
        both_bad: share of its votes in which both answers were bad.
        both_good: share of its votes in which both answers were good.
        marks: by mark, the share of its answers that got it.
        by_kind: by kind of prompt, its share of wins there, ties as half a win; not by fitted strengths.
    """

    name: str
    share: Estimate
    points: Estimate
    both_bad: Estimate
    both_good: Estimate
    marks: dict[str, Estimate]
    by_kind: dict[str, Estimate]


@dataclass(frozen=True)
class Ratings:
    """What the votes say of all systems; systems by strength, the strongest first.

    Attributes:
        systems: in the order of their strengths.
        pairs: those that somebody judged, in the order of the systems.
        both_bad: share of all votes in which both answers were bad.
        both_good: share of all votes in which both answers were good.
    """

    systems: list[SystemRating]
    pairs: list[PairRating]
    both_bad: Estimate
    both_good: Estimate


class Draws:
    """Random weights of the three bootstraps: by people, by prompts, by single votes.

    Each level of a factor gets a weight of the exponential distribution (the Bayesian bootstrap), so that no person's
    votes vanish from a draw as they would from a resampling of five people.
    """

    def __init__(self, ballots: Sequence[Ballot], seed: int, num_draws: int = NUM_DRAWS) -> None:
        random = np.random.default_rng(seed)
        self.people = np.unique([ballot.voter for ballot in ballots], return_inverse=True)[1]
        self.prompts = np.unique([ballot.prompt for ballot in ballots], return_inverse=True)[1]
        levels = (self.people, self.prompts, np.arange(len(ballots)))
        self.weights: list[Floats] = [
            random.exponential(size=(num_draws, int(level.max()) + 1))[:, level] for level in levels
        ]

    def counts(self, mask: NDArray[np.bool_]) -> tuple[int, int, int]:
        """Return how many people, prompts and votes a figure of the ballots of a mask, of shape (n,), is of."""
        return len(np.unique(self.people[mask])), len(np.unique(self.prompts[mask])), int(mask.sum())


@dataclass(frozen=True)
class _Spread:
    """Variances of a figure and the degrees of freedom of its interval.

    Attributes:
        people: variance between people, that of single votes included; 0 with one person.
        prompts: the same between prompts.
        votes: of single votes.
        floor: the least that the whole is taken for.
        freedom: degrees of freedom of Student's t.
    """

    people: float
    prompts: float
    votes: float
    floor: float
    freedom: float

    @property
    def whole(self) -> float:
        """Return the variance of the figure."""
        both = self.people + self.prompts - self.votes
        return max(both, self.people, self.prompts, self.votes, self.floor)


def _spread(replicates: Sequence[Floats], counts: tuple[int, int, int], floor: float = 0.0) -> _Spread:
    """Return the variances of a figure from its values under the three bootstraps, each of shape (draws,).

    Exponential weights of G equal groups give a mean the variance (G - 1) / (G (G + 1)) s², where that of the mean is
    s² / G; the quotient is put right here.
    """
    found = [
        float(np.var(values, ddof=1)) * (count + 1) / (count - 1) if count > 1 else 0.0
        for values, count in zip(replicates, counts, strict=True)
    ]
    # Satterthwaite 1946 ("An approximate distribution of estimates of variance components"): the square of the whole
    # over the sum of the squared parts, each by its own degrees of freedom. Never fewer than the scarcer factor has; of
    # one person nothing is known of how people differ.
    least = min((count - 1 for count in counts[:2] if count > 1), default=1)
    spread = _Spread(found[0], found[1], found[2], floor, least)
    parts = sum(part**2 / (count - 1) for part, count in zip(found, counts, strict=True) if count > 1)
    return replace(spread, freedom=max(spread.freedom, spread.whole**2 / parts)) if parts else spread


def _rate_interval(rate: float, votes: float, variance: float, freedom: float) -> tuple[float, float]:
    """Return the 95 % interval of a share.

    It is symmetrical in the logarithm of the odds, so that it ends within 0 and 1, around the share with one vote more
    on either side, so that it has a width at a share of 0 or 1.
    """
    from scipy.stats import t

    centre = (rate * votes + 1) / (votes + 2)
    half = float(t.ppf(0.975, freedom)) * math.sqrt(variance) / (centre * (1 - centre))
    odds = math.log(centre / (1 - centre))
    return min(rate, _logistic(odds - half)), max(rate, _logistic(odds + half))


def _logistic(odds: float) -> float:
    return 1 / (1 + math.exp(-max(-500.0, min(500.0, odds))))


def _rate_floor(values: Floats) -> float:
    """Return the variance of the mean of independent votes with one more at either end, values of shape (n,)."""
    more = np.concatenate([values, [0.0, 1.0]])
    return float(np.var(more)) / len(more)


def _rate(draws: Draws, values: Floats, mask: NDArray[np.bool_]) -> tuple[Estimate, _Spread]:
    """Return the mean of the values of a mask, both of shape (n,), with its interval and what that is made of."""
    chosen = values[mask]
    replicates = [weights[:, mask] @ chosen / weights[:, mask].sum(axis=1) for weights in draws.weights]
    people, prompts, votes = draws.counts(mask)
    spread = _spread(replicates, (people, prompts, votes), _rate_floor(chosen))
    rate = float(chosen.mean())
    low, high = _rate_interval(rate, votes, spread.whole, spread.freedom)
    return Estimate(rate, low, high, votes, people, prompts), spread


def share(draws: Draws, values: Sequence[bool], mask: Sequence[bool] | None = None) -> Estimate | None:
    """Return the share of true values among the ballots of a mask (by default all); None where there are none."""
    chosen = np.ones(len(values), dtype=bool) if mask is None else np.asarray(mask, dtype=bool)
    return _rate(draws, np.asarray(values, dtype=np.float64), chosen)[0] if chosen.any() else None


def fit_strengths(wins: Floats) -> Floats:
    """Return strengths of the Bradley-Terry model as natural logarithms of odds, of shape (K,), with mean 0.

    System i wins against j with probability 1 / (1 + exp(s_j - s_i)). Each pair has half a vote beforehand, shared
    equally, so that a system that always won has a finite strength.

    Args:
        wins: of shape (K, K): what the system of the row won against that of the column, ties as half a win each.
    """
    import pandas
    from evalica import Winner, bradley_terry

    count = len(wins)
    rows, columns = np.nonzero(~np.eye(count, dtype=bool))
    fit = bradley_terry(
        rows.tolist(), columns.tolist(), [Winner.X] * len(rows), index=pandas.Index(range(count)),
        weights=(wins[rows, columns] + _PRIOR / 2).tolist(), tolerance=1e-8, limit=10_000,
    )  # fmt: skip
    logs = np.log(fit.scores.sort_index().to_numpy(dtype=np.float64))
    found: Floats = logs - logs.mean()
    return found


def mean_win_odds(strengths: Floats) -> Floats:
    """Return for each system the log-odds of its expected share of wins against the others, of shape (K,)."""
    chances = 1 / (1 + np.exp(strengths[None, :] - strengths[:, None]))
    shares = (chances.sum(axis=1) - 0.5) / (len(strengths) - 1)
    found: Floats = np.log(shares / (1 - shares))
    return found


def _fitted(draws: Draws, ballots: Sequence[Ballot], systems: Sequence[str]) -> list[tuple[Estimate, Estimate]]:
    """Return for each system its expected share of wins against the others and its points."""
    from scipy.stats import t

    place = {name: index for index, name in enumerate(systems)}
    count = len(systems)
    left = np.array([place[ballot.left] for ballot in ballots])
    right = np.array([place[ballot.right] for ballot in ballots])
    points = np.array([ballot.points for ballot in ballots])
    table = np.zeros((len(ballots), count * count))  # what one ballot adds to the matrix of wins
    table[np.arange(len(ballots)), left * count + right] = points
    table[np.arange(len(ballots)), right * count + left] = 1 - points

    def fit(weights: Floats) -> Floats:
        strengths = np.array([fit_strengths(row.reshape(count, count)) for row in np.atleast_2d(weights @ table)])
        return np.stack([[mean_win_odds(row) for row in strengths], strengths * _ELO])

    value = fit(np.ones((1, len(ballots))))[:, 0]
    replicates = [fit(weights * (weights.shape[1] / weights.sum(axis=1, keepdims=True))) for weights in draws.weights]
    found = []
    for index, name in enumerate(systems):
        mask = np.array([name in (ballot.left, ballot.right) for ballot in ballots])
        people, prompts, votes = counts = draws.counts(mask)
        both = []
        for scale, is_odds in ((0, True), (1, False)):
            spread = _spread([rows[scale, :, index] for rows in replicates], counts)
            half = float(t.ppf(0.975, spread.freedom)) * math.sqrt(spread.whole)
            ends = [float(value[scale, index]) + step for step in (0.0, -half, half)]
            centre, low, high = map(_logistic, ends) if is_odds else ends
            both.append(Estimate(centre, low, high, votes, people, prompts))
        found.append((both[0], both[1]))
    return found


def votes_until_decided(estimate: Estimate, spread: _Spread) -> tuple[int | None, bool]:
    """Return how many more votes decide a pair, and whether votes alone cannot.

    Assumed is that the win rate stays where it is, and that the same people go on, with new prompts and in the same
    proportions: then what single votes and prompts add to the variance shrinks as votes grow, and what people differ by
    stays. Should the rate stay exactly where it is, the chance that the pair is decided by then is about one half.

    Returns:
        The number (0: decided, None: more than `MOST_VOTES`), and whether the variance between people alone is wider
        than the distance to 50 %.
    """
    if estimate.low > 0.5 or estimate.high < 0.5:
        return 0, False
    stays = max(0.0, spread.people - spread.votes)
    shrinks = max(0.0, spread.whole - stays)

    def is_decided(more: float) -> bool:
        votes = estimate.votes + more
        variance = stays + shrinks * estimate.votes / votes
        low, high = _rate_interval(estimate.value, votes, variance, spread.freedom)
        return low > 0.5 or high < 0.5

    if not is_decided(MOST_VOTES):
        return None, not is_decided(1e12)
    low, high = 0, MOST_VOTES
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_decided(middle) else (middle, high)
    return high, False


def rate_pair(draws: Draws, ballots: Sequence[Ballot], first: str, second: str) -> PairRating | None:
    """Return the rating of a pair from the ballots that the draws are of; None where nobody judged it."""
    mask = np.array([{ballot.left, ballot.right} == {first, second} for ballot in ballots])
    if not mask.any():
        return None
    points = np.array([ballot.points if ballot.left == first else 1 - ballot.points for ballot in ballots])
    estimate, spread = _rate(draws, points, mask)
    chosen = [ballot for ballot, is_chosen in zip(ballots, mask, strict=True) if is_chosen]
    ties = [sum(ballot.choice == choice for ballot in chosen) for choice in ("both_good", "both_bad")]
    won = sum(ballot.choice == ("left" if ballot.left == first else "right") for ballot in chosen)
    wins = (won, len(chosen) - won - sum(ties), ties[0], ties[1])
    return PairRating(first, second, estimate, wins, *votes_until_decided(estimate, spread))


def rate_systems(ballots: Sequence[Ballot], seed: int = 0, num_draws: int = NUM_DRAWS) -> Ratings:
    """Return what the votes say of the systems; ballots that are repetitions are left out.

    Args:
        ballots: of people; not of a judge model.
        seed: of the bootstraps.
        num_draws: of each of the three bootstraps.

    Raises:
        InputError: there is no ballot, or an optional package is missing.
    """
    ensure_packages("people", "evalica", "scipy")
    ballots = [ballot for ballot in ballots if not ballot.repeat]
    ensure(ballots, "votes: there are none yet. Let somebody vote first.")
    draws = Draws(ballots, seed, num_draws)
    names = sorted({name for ballot in ballots for name in ballot.pair})
    fitted = dict(zip(names, _fitted(draws, ballots, names), strict=True))
    names.sort(key=lambda name: -fitted[name][1].value)
    systems = [_rate_system(draws, ballots, name, *fitted[name]) for name in names]
    pairs = [
        pair
        for index, first in enumerate(names)
        for second in names[index + 1 :]
        if (pair := rate_pair(draws, ballots, first, second)) is not None
    ]
    both = {choice: share(draws, [ballot.choice == choice for ballot in ballots]) for choice in CHOICES}
    return Ratings(systems, pairs, _known(both["both_bad"]), _known(both["both_good"]))


def _known(estimate: Estimate | None) -> Estimate:
    assert estimate is not None
    return estimate


def _rate_system(
    draws: Draws, ballots: Sequence[Ballot], name: str, expected: Estimate, points: Estimate
) -> SystemRating:
    own = np.array([name in ballot.pair for ballot in ballots])
    marks: dict[str, Any] = {}
    for mark in MARKS:
        has_mark = [mark in ballot.marks[0 if ballot.left == name else 1] for ballot in ballots]
        marks[mark] = share(draws, has_mark, own.tolist())
    won = np.array([ballot.points if ballot.left == name else 1 - ballot.points for ballot in ballots])
    kinds = sorted({ballot.kind for ballot, is_own in zip(ballots, own, strict=True) if is_own})
    by_kind = {
        kind: _rate(draws, won, own & np.array([ballot.kind == kind for ballot in ballots]))[0] for kind in kinds
    }
    bad, good = (
        _known(share(draws, [ballot.choice == choice for ballot in ballots], own.tolist()))
        for choice in ("both_bad", "both_good")
    )
    return SystemRating(name, expected, points, bad, good, marks, by_kind)
