"""Pairing: which two answers a person judges next, so that few votes say most.

The two systems are those whose next vote narrows the estimate most: the pair of largest `w * v`, where `w = p (1 - p)`
is the information of one vote under the Bradley-Terry model with the strengths that the votes show so far, and `v` the
variance of the difference of the two strengths. By the matrix determinant lemma a vote multiplies the determinant of
the information matrix by `1 + w * v`: the greedy step of a D-optimal design (Atkinson, Donev and Tobias, "Optimum
Experimental Designs", Oxford 2007, chapter 11). Prompts are balanced within a pair of systems, then kinds of prompts.

Every choice follows from the study's seed, the votes and the pairs that others have before them now.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from .study import Study
from .votes import Vote

REPEAT_EVERY = 10  # votes of a person: the last of so many is a repetition, if there is something to repeat
REPEAT_AFTER = 8  # votes that lie at least between a pair and its repetition
SHARED_EVERY = 4  # votes of a person: the last of so many is on a pair that others judged, to measure agreement
_PRIOR_VARIANCE = 1.0  # of a strength, on the logit scale: keeps the strengths finite while there are few votes
_NEWTON_STEPS, _NEWTON_ENOUGH = 50, 1e-8
_MOST_IMBALANCE = 2  # how often more a system may stand on one side than on the other before the side is no more drawn

Item = tuple[str, frozenset[str]]


@dataclass(frozen=True)
class OfferedPair:
    """Two answers to a prompt, and the sides on which they stand.

    Attributes:
        prompt: id of the prompt.
        left: name of the system on the left side.
        right: name of the system on the right side.
        repeat: whether the person has judged these two answers before.
    """

    prompt: str
    left: str
    right: str
    repeat: bool = False

    @property
    def item(self) -> Item:
        """The prompt and the two systems, whatever their sides."""
        return self.prompt, frozenset((self.left, self.right))


def vote_item(vote: Vote) -> Item:
    """Return the prompt and the two systems of a vote, whatever their sides."""
    return vote.prompt, vote.systems


class PairChooser:
    """Chooses the pairs of one study.

    Attributes:
        study: the prompts and the answers.
        seed: draws the order of what is equally good.
        items: all prompts and pairs of systems whose answers differ.
    """

    def __init__(self, study: Study, seed: int = 0) -> None:
        self.study, self.seed = study, seed
        self.items: set[Item] = {
            (prompt, frozenset(pair))
            for prompt in study.prompts
            for pair in combinations(study.systems, 2)
            if not study.are_equal(prompt, *pair)
        }

    def choose(self, voter: str, votes: list[Vote], pending: Iterable[OfferedPair] = ()) -> OfferedPair | None:
        """Return the next pair of a person, or None after the last.

        Args:
            voter: the person.
            votes: of everybody, in the order in which they were given.
            pending: pairs that other people have before them now; each counts as a vote on its way.
        """
        own = [vote for vote in votes if vote.voter == voter]
        if len(own) % REPEAT_EVERY == REPEAT_EVERY - 1 and (again := self._repetition(own)):
            return again
        left = self.items - {vote_item(vote) for vote in own}
        if not left:
            return None
        pending = list(pending)
        others = Counter(vote_item(vote) for vote in votes if vote.voter != voter and not vote.repeat)
        if len(own) % SHARED_EVERY == SHARED_EVERY - 1:
            left = self._least_shared(left, others) or left
        coming = others + Counter(pair.item for pair in pending)
        order = self._pairs_by_gain(votes, pending, voter, len(own))
        systems = next(pair for pair in order if any(item[1] == pair for item in left))
        prompts = [prompt for prompt, pair in left if pair == systems]
        return self._on_sides(self._best_prompt(prompts, systems, coming, own), systems, voter, votes)

    def _repetition(self, own: list[Vote]) -> OfferedPair | None:
        """Return one of a person's own pairs, judged once and long enough ago, with its sides swapped."""
        judged = Counter(vote_item(vote) for vote in own)
        old = [vote for vote in own[: max(0, len(own) - REPEAT_AFTER)] if judged[vote_item(vote)] == 1]
        old = [vote for vote in old if vote_item(vote) in self.items]
        if not old:
            return None
        vote = min(old, key=lambda vote: self._draw("repeat", len(own), vote.voter, vote.prompt, vote.left))
        return OfferedPair(vote.prompt, left=vote.right, right=vote.left, repeat=True)

    @staticmethod
    def _least_shared(left: set[Item], others: Counter[Item]) -> set[Item]:
        """Return the items that others have judged, those with the fewest such votes only."""
        least = min((others[item] for item in left if others[item]), default=0)
        return {item for item in left if least and others[item] == least}

    def _pairs_by_gain(
        self, votes: list[Vote], pending: list[OfferedPair], voter: str, turn: int
    ) -> list[frozenset[str]]:
        """Return the pairs of systems, that whose next vote says most first."""
        place = {name: number for number, name in enumerate(self.study.systems)}
        judged = [vote for vote in votes if not vote.repeat and vote.systems <= place.keys()]
        rows = [(place[vote.left], place[vote.right]) for vote in judged]
        rows += [(place[pair.left], place[pair.right]) for pair in pending if not pair.repeat]
        scores = [{"left": 1.0, "right": 0.0}.get(vote.choice, 0.5) for vote in judged]
        scores += [math.nan] * (len(rows) - len(scores))  # on their way: they inform, and nobody knows what they say
        strengths, covariance = fit_strengths(np.array(rows).reshape(-1, 2), np.array(scores), len(place))

        def gain(pair: tuple[str, str]) -> float:
            one, other = place[pair[0]], place[pair[1]]
            probability = 1 / (1 + math.exp(strengths[other] - strengths[one]))
            variance = covariance[one, one] + covariance[other, other] - 2 * covariance[one, other]
            return round(float(probability * (1 - probability) * variance), 9)

        pairs = sorted(combinations(self.study.systems, 2), key=lambda pair: self._draw("pair", voter, turn, *pair))
        return [frozenset(pair) for pair in sorted(pairs, key=gain, reverse=True)]

    def _best_prompt(self, prompts: list[str], systems: frozenset[str], coming: Counter[Item], own: list[Vote]) -> str:
        """Return the prompt with the fewest votes: on these systems, of its kind, at all; the last are drawn."""
        given = coming + Counter(vote_item(vote) for vote in own)
        of_prompt: Counter[str] = Counter()
        of_kind: Counter[str] = Counter()
        for (prompt, _), count in given.items():
            of_prompt[prompt] += count
            of_kind[self.study.kinds.get(prompt, "")] += count
        sizes = Counter(self.study.kinds.values())
        last = own[-1].prompt if own else None  # the same prompt twice running tires

        def order(prompt: str) -> tuple[object, ...]:
            kind = self.study.kinds[prompt]
            return (
                given[prompt, systems],
                prompt == last,
                of_kind[kind] / sizes[kind],
                of_prompt[prompt],
                self._draw("prompt", prompt),
            )

        return min(prompts, key=order)

    def _on_sides(self, prompt: str, systems: frozenset[str], voter: str, votes: list[Vote]) -> OfferedPair:
        """Draw the sides, unless the person, or else everybody, has had a system too often on one of them."""
        one, other = sorted(systems)
        same = [vote for vote in votes if vote.systems == systems and not vote.repeat]
        for given in ([vote for vote in same if vote.voter == voter], same):
            more_on_left = sum(1 if vote.left == one else -1 for vote in given)
            if abs(more_on_left) >= _MOST_IMBALANCE:
                is_left = more_on_left < 0
                break
        else:
            is_left = self._draw("side", voter, prompt, one, other) < 0.5
        return OfferedPair(prompt, one, other) if is_left else OfferedPair(prompt, other, one)

    def _draw(self, *words: object) -> float:
        """Return a number in [0, 1) that the seed and the words alone decide."""
        text = "\x1f".join(map(str, (self.seed, *words)))
        return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:6], "big") / 2**48


def fit_strengths(rows: np.ndarray, scores: np.ndarray, systems: int) -> tuple[np.ndarray, np.ndarray]:
    """Fit the Bradley-Terry model with a normal prior, for the choice of pairs only.

    Args:
        rows: votes x 2, numbers of the left and the right system.
        scores: votes; 1 where the left one won, 0 where the right one did, 0.5 for a tie, NaN for a vote to come, which
            counts for the information alone.
        systems: how many there are.

    Returns:
        strengths: systems, logits with mean near 0.
        covariance: systems x systems, the inverse of the information at the strengths.
    """
    strengths = np.zeros(systems)
    design = np.zeros((len(rows), systems))
    design[np.arange(len(rows)), rows[:, 0].astype(int)] = 1
    design[np.arange(len(rows)), rows[:, 1].astype(int)] = -1
    prior = np.eye(systems) / _PRIOR_VARIANCE
    is_given = ~np.isnan(scores)
    known, won = design[is_given], scores[is_given]
    for _ in range(_NEWTON_STEPS):
        probabilities = 1 / (1 + np.exp(-(known @ strengths)))
        slope = known.T @ (won - probabilities) - prior @ strengths
        curve = (known.T * (probabilities * (1 - probabilities))) @ known + prior
        step = np.linalg.solve(curve, slope)
        strengths = strengths + step
        if np.abs(step).max() < _NEWTON_ENOUGH:
            break
    probabilities = 1 / (1 + np.exp(-(design @ strengths)))
    information = (design.T * (probabilities * (1 - probabilities))) @ design + prior
    return strengths, np.linalg.inv(information)
