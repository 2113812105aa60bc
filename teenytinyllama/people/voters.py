"""The people behind the votes: whether they agree, whether each stays with an opinion, and who clicks at random.

A person is named as clicking at random when three things hold. The votes agree no better with the other people's votes
on the same pairs, and with the person's own repetitions, than the same votes in random order would. They prefer no
system over another more than in random order: whoever does has a taste, if an odd one. And they agree worse than the
other people's votes do. Without the last, everybody with few votes would be named.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..checks import ensure_packages
from .ratings import Ballot, Floats
from .votes import CHOICES

NUM_ORDERS = 2000  # random orders of a person's votes: the smallest chance that can be told is 1 / 2001
LEVEL = 0.05  # chance of naming anybody wrongly, over all people of a study
_PAIR_WEIGHT = 2.0  # votes that the others' mean of a pair of systems counts as, beside their votes on the very answers
_SEEN_FROM_RIGHT = {"left": "right", "right": "left"}


@dataclass(frozen=True)
class VoterFigures:
    """One person.

    Attributes:
        voter: nickname.
        votes: without repetitions.
        repeats: repetitions whose first vote is known.
        same_again: share of them with the same choice; None without any.
        left_share: share of left among votes for one side; None without any.
        left_chance: two-sided chance of that or a more unequal share without a bias (binomial); None without any.
        agreement: mean product of the person's votes and the others', both from -1/2 to 1/2; 0 is chance.
        random_chance: chance of an agreement as high as this or higher, were the votes in random order.
        taste_chance: chance of preferences between systems as strong as these, were the votes in random order.
        worse_chance: chance of an agreement as low as this or lower, were it the others' own; None without others.
        looks_random: whether the person is named; see the module.
    """

    voter: str
    votes: int
    repeats: int
    same_again: float | None
    left_share: float | None
    left_chance: float | None
    agreement: float
    random_chance: float
    taste_chance: float
    worse_chance: float | None
    looks_random: bool


@dataclass(frozen=True)
class Agreement:
    """Krippendorff's alpha: 1 is full agreement, 0 that of chance, below 0 is less.

    Attributes:
        alpha: None where no pair of answers was judged by two people, or all votes are the same.
        units: pairs of answers that two people or more judged.
    """

    alpha: float | None
    units: int


def measure_agreement(ballots: Sequence[Ballot]) -> Agreement:
    """Return how far people agree on the pairs of answers that several of them judged (four choices, nominal).

    Repetitions are left out; of a person who judged a pair twice the last vote counts.
    """
    ensure_packages("people", "evalica", "scipy")
    import pandas
    from evalica import alpha

    units: dict[tuple[str, tuple[str, str]], dict[str, str]] = defaultdict(dict)
    for ballot in ballots:
        if not ballot.repeat:
            units[ballot.prompt, ballot.pair][ballot.voter] = _choice_of_pair(ballot)
    shared = {unit: votes for unit, votes in units.items() if len(votes) > 1}
    codes = [{voter: float(CHOICES.index(choice)) for voter, choice in votes.items()} for votes in shared.values()]
    if len({code for votes in codes for code in votes.values()}) < 2:
        return Agreement(None, len(shared))
    found = float(alpha(pandas.DataFrame(codes).T, distance="nominal").alpha)
    return Agreement(found if math.isfinite(found) else None, len(shared))


def agreement_by_kind(ballots: Sequence[Ballot]) -> dict[str, Agreement]:
    """Return the agreement on the prompts of each kind."""
    kinds = sorted({ballot.kind for ballot in ballots})
    return {kind: measure_agreement([ballot for ballot in ballots if ballot.kind == kind]) for kind in kinds}


def _choice_of_pair(ballot: Ballot) -> str:
    """Return the choice with `left` for the first system of `pair`, on whichever side it stood."""
    return ballot.choice if ballot.left < ballot.right else _SEEN_FROM_RIGHT.get(ballot.choice, ballot.choice)


def _repetitions(ballots: Sequence[Ballot]) -> list[tuple[int, int]]:
    """Return the places of each repetition and of the last vote before it by the same person on the same pair."""
    last: dict[tuple[str, str, tuple[str, str]], int] = {}
    found = []
    for index, ballot in enumerate(ballots):
        unit = (ballot.voter, ballot.prompt, ballot.pair)
        if ballot.repeat and unit in last:
            found.append((index, last[unit]))
        last[unit] = index
    return found


class _Expected:
    """What the others say of each pair: sums and numbers of their votes, from which one person's are taken off."""

    def __init__(self, ballots: Sequence[Ballot]) -> None:
        self.on_pair: dict[object, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for ballot in ballots:
            if not ballot.repeat:
                for place in self._places(ballot):
                    self._add(place, ballot.pair_points - 0.5, 1)
                    self._add((ballot.voter, place), ballot.pair_points - 0.5, 1)

    def _add(self, place: object, points: float, number: int) -> None:
        self.on_pair[place][0] += points
        self.on_pair[place][1] += number

    @staticmethod
    def _places(ballot: Ballot) -> tuple[object, object]:
        return (ballot.prompt, ballot.pair), ballot.pair

    def of(self, ballot: Ballot) -> float:
        """Return what the others' votes give the answer on the left, from -1/2 to 1/2; 0 where there are none."""
        sums = []
        for place in self._places(ballot):
            whole, own = self.on_pair[place], self.on_pair[ballot.voter, place]
            sums.append((whole[0] - own[0], whole[1] - own[1]))
        (points, number), (pair_points, pair_number) = sums
        if pair_number == 0:
            return 0.0
        mean = (points + _PAIR_WEIGHT * pair_points / pair_number) / (number + _PAIR_WEIGHT)
        return mean if ballot.left < ballot.right else -mean


def measure_voters(ballots: Sequence[Ballot], seed: int = 0) -> list[VoterFigures]:
    """Return the figures of each person, by nickname.

    The chances are corrected for the number of people (Holm 1979): `LEVEL` is that of naming anybody wrongly.

    Args:
        ballots: in the order in which they were given, repetitions included.
        seed: of the random orders.
    """
    ensure_packages("people", "evalica", "scipy")
    expected = _Expected(ballots)
    random = np.random.default_rng(seed)
    voters = sorted({ballot.voter for ballot in ballots})
    own = {voter: [ballot for ballot in ballots if ballot.voter == voter] for voter in voters}
    products: dict[str, Floats] = {}
    chances: dict[str, tuple[float, float]] = {}
    for voter in voters:
        products[voter], chances[voter] = _against_chance(own[voter], expected, random)
    worse = {voter: _worse_than_others(voter, products) for voter in voters}
    below = _holm({voter: chance for voter, chance in worse.items() if chance is not None})
    return [
        _figures(own[voter], products[voter], chances[voter], worse[voter],
                 looks_random=voter in below and min(chances[voter]) > LEVEL)
        for voter in voters
    ]  # fmt: skip


def _against_chance(
    own: Sequence[Ballot], expected: _Expected, random: np.random.Generator
) -> tuple[Floats, tuple[float, float]]:
    """Return one person's products with what is expected, and two chances under random orders of the votes.

    The first is that of the products' mean, the second that of the preferences between systems: of the sum over systems
    of the squared sum of their points by the number of their votes.

    A repetition is compared with the person's own first vote, every other vote with the other people's. Random orders
    keep how often the person chose each answer, so that somebody who always clicks left does not pass.
    """
    points = np.array([ballot.points - 0.5 for ballot in own])
    orders = random.permuted(np.tile(points, (NUM_ORDERS, 1)), axis=1)
    others = np.array([0.0 if ballot.repeat else expected.of(ballot) for ballot in own])
    found, by_chance = points * others, orders @ others
    for index, first in _repetitions(own):
        sign = 1.0 if own[index].left == own[first].left else -1.0
        found[index] = sign * points[index] * points[first]
        by_chance += sign * orders[:, index] * orders[:, first]
    systems = sorted({name for ballot in own for name in ballot.pair})
    signs = np.array([[float(name == ballot.left) - float(name == ballot.right) for name in systems] for ballot in own])
    numbers = np.abs(signs).sum(axis=0)
    preferences = ((points @ signs) ** 2 / numbers).sum()
    return found, (
        _share_reached(by_chance, found.sum()),
        _share_reached(((orders @ signs) ** 2 / numbers).sum(axis=1), preferences),
    )


def _share_reached(by_chance: Floats, found: float) -> float:
    """Return the chance of a figure as high as the one found, which counts as one of those by chance."""
    return (1 + int((by_chance >= found - 1e-12).sum())) / (1 + len(by_chance))


def _worse_than_others(voter: str, products: dict[str, Floats]) -> float | None:
    """Return the one-sided chance that a person's mean product is as low as this (Welch's test); None without others.

    Compared is with the others' votes pooled.
    """
    from scipy.stats import ttest_ind

    others = [values for name, values in products.items() if name != voter]
    if not others or len(products[voter]) < 2 or sum(map(len, others)) < 2:
        return None
    pooled = np.concatenate(others)
    if np.ptp(products[voter]) == 0 and np.ptp(pooled) == 0:
        return None
    return float(ttest_ind(products[voter], pooled, equal_var=False, alternative="less").pvalue)


def _holm(chances: dict[str, float]) -> set[str]:
    """Return the names whose chances are below `LEVEL` after Holm's correction for their number."""
    found: set[str] = set()
    for rank, (name, chance) in enumerate(sorted(chances.items(), key=lambda item: item[1])):
        if chance > LEVEL / (len(chances) - rank):
            break
        found.add(name)
    return found


def _figures(
    own: Sequence[Ballot], products: Floats, chances: tuple[float, float], worse: float | None, looks_random: bool
) -> VoterFigures:
    from scipy.stats import binomtest

    repetitions = _repetitions(own)
    same = [_choice_of_pair(own[index]) == _choice_of_pair(own[first]) for index, first in repetitions]
    sides = [ballot.choice for ballot in own if ballot.choice in ("left", "right")]
    left = sides.count("left")
    return VoterFigures(
        voter=own[0].voter,
        votes=sum(not ballot.repeat for ballot in own),
        repeats=len(same),
        same_again=sum(same) / len(same) if same else None,
        left_share=left / len(sides) if sides else None,
        left_chance=float(binomtest(left, len(sides)).pvalue) if sides else None,
        agreement=float(products.mean()),
        random_chance=chances[0],
        taste_chance=chances[1],
        worse_chance=worse,
        looks_random=looks_random,
    )


def named_random(figures: Sequence[VoterFigures]) -> list[str]:
    """Return the nicknames of the people who look as if they clicked at random."""
    return [person.voter for person in figures if person.looks_random]
