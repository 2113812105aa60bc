"""Votes of simulated people with known strengths: what the figures of a comparison are proved on.

A person prefers the answer that seems better to them. How good an answer seems is the strength of its system, plus how
well the system does on this prompt, plus how much this person likes the system, plus noise of the moment (logistic, as
in the Bradley-Terry model). People differ in taste and prompts in what they ask for, so that votes of one person, and
votes on one prompt, are alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from teenytinyllama.people.ratings import Ballot, Floats, fit_strengths, mean_win_odds
from teenytinyllama.people.votes import CHOICES

_KINDS = ("letter", "question", "summary", "story")


@dataclass(frozen=True)
class SimulatedStudy:
    """People, prompts and systems of a simulated comparison; strengths and spreads are in natural logarithms of odds.

    Attributes:
        strengths: of the systems, which are named s0, s1 and so on.
        people: how many vote.
        votes_each: votes of each person, repetitions not counted.
        num_prompts: in the set; each person gets them in an order of their own, over again if need be.
        taste: standard deviation of how much a person likes a system more than others do.
        luck: standard deviation of how well a system does on a prompt.
        tie: difference below which two answers are equally good.
        good: how good an answer of strength 0 has to be to be good, for a tie to be one of good answers.
        random_people: how many of the people click at random.
        repeat_every: a repetition, with the sides swapped, after so many votes; 0 for none.
        left_bias: added to how good the answer on the left seems.
    """

    strengths: Sequence[float] = (0.0, 0.4, 0.8, 1.2)
    people: int = 5
    votes_each: int = 60
    num_prompts: int = 60
    taste: float = 0.4
    luck: float = 0.6
    tie: float = 0.4
    good: float = 0.5
    random_people: int = 0
    repeat_every: int = 10
    left_bias: float = 0.0

    @property
    def names(self) -> list[str]:
        """Return the names of the systems."""
        return [f"s{index}" for index in range(len(self.strengths))]

    def true_rates(self) -> Floats:
        """Return the win rates over all people and prompts there could be, of shape (K, K), ties as half a win.

        The integral over taste and luck is that of Gauss and Hermite; people who click at random are not in it.
        """
        strengths = np.asarray(self.strengths, dtype=np.float64)
        gaps = strengths[:, None] - strengths[None, :]
        nodes, weights = np.polynomial.hermite_e.hermegauss(41)
        spread = np.sqrt(2 * (self.taste**2 + self.luck**2))  # of the difference of two systems
        at = gaps[..., None] + spread * nodes
        win, no_loss = (1 / (1 + np.exp(edge - at)) for edge in (self.tie, -self.tie))
        rates: Floats = ((win + no_loss) / 2) @ (weights / weights.sum())
        return rates

    def true_shares(self) -> Floats:
        """Return the expected shares of wins against the others, of shape (K,), of the model fitted to all votes."""
        rates = self.true_rates() * 1e6
        np.fill_diagonal(rates, 0)
        shares: Floats = 1 / (1 + np.exp(-mean_win_odds(fit_strengths(rates))))
        return shares


def simulate_ballots(study: SimulatedStudy, seed: int) -> list[Ballot]:
    """Return the votes of one simulated comparison; people who click at random are the last ones."""
    random = np.random.default_rng(seed)
    count = len(study.strengths)
    liking = random.normal(0, study.taste, (study.people, count))
    fortune = random.normal(0, study.luck, (study.num_prompts, count))
    pairs = [(first, second) for first in range(count) for second in range(first + 1, count)]
    ballots: list[Ballot] = []
    for person in range(study.people):
        is_random = person >= study.people - study.random_people
        order = np.concatenate(
            [random.permutation(study.num_prompts) for _ in range(-(-study.votes_each // study.num_prompts))]
        )
        seen: list[tuple[int, int, int]] = []
        for prompt in order[: study.votes_each].tolist():
            first, second = pairs[int(random.integers(len(pairs)))]
            shown = (prompt, first, second) if random.random() < 0.5 else (prompt, second, first)
            seen.append(shown)
            turns = [(shown, False)]
            if study.repeat_every and len(seen) % study.repeat_every == 0:
                again = seen[max(0, len(seen) - 10)]
                turns.append(((again[0], again[2], again[1]), True))
            for (at, left, right), is_repeat in turns:
                quality = np.asarray(study.strengths) + liking[person] + fortune[at]
                choice = (
                    CHOICES[int(random.integers(4))] if is_random
                    else _choose(random, study, quality[left], quality[right])
                )  # fmt: skip
                ballots.append(
                    Ballot(f"p{person}", f"q{at}", _KINDS[at % 4], f"s{left}", f"s{right}", choice, is_repeat)
                )
    return ballots


def _choose(random: np.random.Generator, study: SimulatedStudy, left: float, right: float) -> str:
    gap = left - right + study.left_bias + random.logistic()
    if abs(gap) >= study.tie:
        return "left" if gap > 0 else "right"
    return "both_good" if (left + right) / 2 + random.logistic() > study.good else "both_bad"
