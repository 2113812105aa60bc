"""Ratings of a comparison's votes: known strengths are found, intervals hold, random clickers are named."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))

from people_simulation import SimulatedStudy, simulate_ballots

from teenytinyllama.checks import InputError
from teenytinyllama.people import ratings
from teenytinyllama.people.ratings import Ballot, fit_strengths, mean_win_odds, rate_systems
from teenytinyllama.people.voters import measure_agreement, measure_voters, named_random


def ballot(voter: str, prompt: str, choice: str, left: str = "a", right: str = "b", repeat: bool = False) -> Ballot:
    return Ballot(voter, prompt, "letter", left, right, choice, repeat)


def test_points_and_sides():
    assert [ballot("x", "q", choice).points for choice in ratings.CHOICES] == [1, 0, 0.5, 0.5]
    swapped = ballot("x", "q", "left", "b", "a")
    assert (swapped.pair, swapped.pair_points) == (("a", "b"), 0)


def test_strengths_are_those_of_the_model():
    strengths = np.array([0.5, 0.0, -0.5])
    wins = 1e6 / (1 + np.exp(strengths[None, :] - strengths[:, None]))
    np.fill_diagonal(wins, 0)
    assert fit_strengths(wins) == pytest.approx(strengths, abs=1e-4)
    assert fit_strengths(np.array([[0, 9.75], [0, 0]]))[0] == pytest.approx(np.log(10 / 0.25) / 2)  # half a vote shared
    assert mean_win_odds(np.array([np.log(3) / 2, -np.log(3) / 2])) == pytest.approx([np.log(3), -np.log(3)])


def test_counts_of_a_pair_and_ties_as_half_wins():
    votes = [ballot("x", "1", "left"), ballot("y", "2", "right", "b", "a"), ballot("x", "3", "both_bad"),
             ballot("y", "4", "both_good"), ballot("x", "1", "right", repeat=True)]  # fmt: skip
    found = rate_systems(votes)
    pair = found.pairs[0]
    assert (pair.first, pair.second, pair.wins) == ("a", "b", (2, 0, 1, 1))
    assert pair.win_rate.value == 0.75
    assert (pair.win_rate.votes, pair.win_rate.people, pair.win_rate.prompts) == (4, 2, 4)
    assert found.both_bad.value == found.systems[0].both_bad.value == 0.25
    assert sum(system.points.value for system in found.systems) == pytest.approx(0)


def test_marks_and_kinds():
    votes = [Ballot("x", f"q{i}", "letter" if i % 2 else "story", "a", "b", "left" if i % 2 else "right",
                    marks=(("truth",), ()) if i < 3 else ((), ("sense",))) for i in range(12)]  # fmt: skip
    systems = {system.name: system for system in rate_systems(votes).systems}
    assert systems["a"].marks["truth"].value == 0.25
    assert systems["b"].marks["sense"].value == 0.75
    assert {kind: rate.value for kind, rate in systems["a"].by_kind.items()} == {"letter": 1, "story": 0}


@pytest.mark.slow
def test_people_who_differ_widen_what_the_same_votes_of_like_people_give():
    split = [ballot(f"p{i % 4}", f"q{i}", "left" if i % 4 < 3 else "right") for i in range(80)]
    mixed = [ballot(f"p{i % 4}", f"q{i}", "left" if (i // 4) % 4 < 3 else "right") for i in range(80)]
    wide, narrow = (rate_systems(votes).pairs[0] for votes in (split, mixed))
    assert wide.win_rate.value == narrow.win_rate.value == 0.75
    assert wide.win_rate.high - wide.win_rate.low > 2 * (narrow.win_rate.high - narrow.win_rate.low)
    assert (narrow.more_votes, wide.more_votes, wide.needs_people) == (0, None, True)


@pytest.mark.slow
def test_more_votes_until_decided():
    votes = [ballot(f"p{i % 5}", f"q{i}", "left" if (i // 5) % 8 < 5 else "right") for i in range(40)]
    pair = rate_systems(votes).pairs[0]
    assert pair.win_rate.value == 0.625
    assert pair.more_votes is not None
    assert 20 < pair.more_votes < 400
    even = rate_systems([replace(vote, choice="both_good") for vote in votes]).pairs[0]
    assert (even.more_votes, even.needs_people) == (None, True)
    assert even.win_rate.low < 0.5 < even.win_rate.high


def test_one_person_and_unanimous_votes_have_an_interval():
    rate = rate_systems([ballot("x", f"q{i}", "left") for i in range(10)]).pairs[0].win_rate
    assert (rate.value, rate.high, rate.people) == (1, 1, 1)
    assert 0.4 < rate.low < 0.9


def test_the_same_votes_and_seed_give_the_same_figures():
    votes = simulate_ballots(SimulatedStudy(votes_each=20), seed=1)
    assert rate_systems(votes, 3, 50) == rate_systems(votes, 3, 50)
    assert rate_systems(votes, 3, 50) != rate_systems(votes, 4, 50)


def test_no_votes_are_refused():
    with pytest.raises(InputError, match="there are none yet. Let somebody vote first"):
        rate_systems([ballot("x", "q", "left", repeat=True)])


@pytest.mark.slow
@pytest.mark.parametrize(("people", "taste", "luck"), [(5, 0.4, 0.6), (5, 1.0, 1.0), (20, 0.4, 0.6)])
def test_intervals_of_simulated_studies_hold_the_truth(people: int, taste: float, luck: float):
    study = SimulatedStudy(strengths=(0, 0.5), people=people, taste=taste, luck=luck)
    truth = study.true_rates()[1, 0]
    rates = [ratings.rate_pair(ratings.Draws(first, seed, 300), first, "s1", "s0").win_rate  # type: ignore[union-attr]
             for seed in range(100)
             for first in [[vote for vote in simulate_ballots(study, seed) if not vote.repeat]]]  # fmt: skip
    assert sum(rate.low <= truth <= rate.high for rate in rates) >= 88


def test_true_rates_are_those_of_many_simulated_votes():
    study = SimulatedStudy(strengths=(0, 0.7), people=300, votes_each=60, num_prompts=400, repeat_every=0)
    found = np.mean([1 - vote.pair_points for vote in simulate_ballots(study, 0)])
    assert found == pytest.approx(study.true_rates()[1, 0], abs=0.015)


def test_agreement_is_that_of_krippendorffs_formula():
    # Two observers and two values, 1 - (n - 1) o01 / (n0 n1): Krippendorff 2011, "Computing Krippendorff's
    # Alpha-Reliability", section A.
    first, second = "bbbbbddddd", "bbbbddddbd"  # two of ten differ
    names = {"b": "left", "d": "right"}
    votes = [ballot(voter, str(i), names[code]) for voter, codes in (("x", first), ("y", second))
             for i, code in enumerate(codes)]  # fmt: skip
    votes[0] = ballot("x", "0", "right", "b", "a")  # the same opinion with the sides swapped
    n_left, n = sum(code == "b" for code in first + second), 20
    expected = 1 - (n - 1) * 4 / (2 * n_left * (n - n_left))
    assert measure_agreement(votes).alpha == pytest.approx(expected)
    assert measure_agreement(votes).units == 10


def test_without_common_pairs_or_with_one_opinion_there_is_no_alpha():
    assert measure_agreement([ballot("x", "1", "left"), ballot("y", "2", "right")]).units == 0
    assert measure_agreement([ballot("x", "1", "left"), ballot("y", "1", "left")]).alpha is None


def test_self_agreement_and_side_bias():
    votes = [ballot("x", str(i), "left") for i in range(20)]
    votes += [ballot("x", "0", "right", "b", "a", repeat=True), ballot("x", "1", "left", "b", "a", repeat=True)]
    found = measure_voters([*votes, ballot("x", "99", "left", repeat=True)])[0]  # a repetition of nothing known
    assert (found.votes, found.repeats, found.same_again) == (20, 2, 0.5)
    assert found.left_share == pytest.approx(22 / 23)
    assert found.left_chance is not None
    assert found.left_chance < 1e-4


def test_a_random_clicker_is_named_and_nobody_else():
    study = SimulatedStudy(strengths=(0, 1, 2), votes_each=150, num_prompts=150, random_people=1)
    assert named_random(measure_voters(simulate_ballots(study, 2))) == ["p4"]
    assert named_random(measure_voters(simulate_ballots(replace(study, random_people=0), 2))) == []


def test_an_odd_taste_is_not_taken_for_random_clicks():
    voters = {f"p{i}": "left" for i in range(4)} | {"odd": "right"}
    noise = np.random.default_rng(0)
    votes = [
        ballot(voter, f"q{i}", choice if noise.random() < 0.9 else "both_bad")
        if (i + len(voter)) % 2 else
        ballot(voter, f"q{i}", {"left": "right", "right": "left"}[choice] if noise.random() < 0.9 else "both_bad", "b", "a")
        for i in range(60) for voter, choice in voters.items()
    ]  # fmt: skip
    odd = next(person for person in measure_voters(votes) if person.voter == "odd")
    assert odd.worse_chance is not None
    assert odd.worse_chance < 0.01 < odd.random_chance
    assert odd.taste_chance < 0.01
    assert not odd.looks_random
