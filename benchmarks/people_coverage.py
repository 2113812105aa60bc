"""Figures of `ttl compare` on simulated votes: do the intervals hold the truth, is the order found, who is named.

    python benchmarks/people_coverage.py intervals [--studies 100] [--draws 400]
    python benchmarks/people_coverage.py random [--studies 100]

intervals  Share of the 95 % intervals of pairs' win rates, and of systems' expected wins, that hold the truth over all
           people and prompts there could be; their mean widths; the worst pair; how often the right order was found and
           the best system was the first. Five and twenty people, 60 votes each on 60 prompts, people and prompts that
           differ by 0, 0.4 and 0.6, or 1 and 1 (standard deviations in log-odds; the systems stand 0.4 apart).
random     One of the people clicks at random, or none: how often the right one is named, how often a wrong one, and how
           much wider the intervals of pairs are with than without the clicker.
"""

import itertools
import sys
from typing import Any

import numpy as np
from common import parser, print_table, write_results
from people_simulation import SimulatedStudy, simulate_ballots

from teenytinyllama.people.ratings import rate_systems
from teenytinyllama.people.voters import measure_voters, named_random

SPREADS = ((0.0, 0.0), (0.4, 0.6), (1.0, 1.0))  # of people and of prompts


def measure_intervals(study: SimulatedStudy, studies: int, draws: int) -> dict[str, Any]:
    """Return coverage and widths over so many simulated comparisons."""
    rates, shares = study.true_rates(), study.true_shares()
    held: dict[tuple[int, int], list[bool]] = {}
    widths, share_held, share_widths, in_order, best_first = [], [], [], [], []
    for seed in range(studies):
        ratings = rate_systems(simulate_ballots(study, seed), seed, draws)
        places = [int(system.name[1:]) for system in ratings.systems]
        in_order.append(places == sorted(places, key=lambda place: -study.strengths[place]))
        best_first.append(places[0] == int(np.argmax(study.strengths)))
        for pair in ratings.pairs:
            first, second = int(pair.first[1:]), int(pair.second[1:])
            is_held = pair.win_rate.low <= rates[first, second] <= pair.win_rate.high
            held.setdefault((min(first, second), max(first, second)), []).append(is_held)
            widths.append(pair.win_rate.high - pair.win_rate.low)
        for system, place in zip(ratings.systems, places, strict=True):
            share_held.append(system.share.low <= shares[place] <= system.share.high)
            share_widths.append(system.share.high - system.share.low)
    return {
        "people": study.people,
        "systems": len(study.strengths),
        "taste": study.taste,
        "luck": study.luck,
        "pairs held": float(np.mean(list(itertools.chain(*held.values())))),
        "worst pair": min(float(np.mean(found)) for found in held.values()),
        "mean width": float(np.mean(widths)),
        "wins held": float(np.mean(share_held)),
        "width of wins": float(np.mean(share_widths)),
        "order found": float(np.mean(in_order)),
        "best first": float(np.mean(best_first)),
    }


def measure_random(study: SimulatedStudy, studies: int, draws: int) -> dict[str, Any]:
    """Return how often the person who clicks at random, and how often another, is named."""
    clickers = {f"p{study.people - 1 - index}" for index in range(study.random_people)}
    right, wrong, wider = [], [], []
    for seed in range(studies):
        ballots = simulate_ballots(study, seed)
        named = set(named_random(measure_voters(ballots, seed)))
        right.append(bool(clickers & named))
        wrong.append(bool(named - clickers))
        if clickers and seed < 20:
            rest = [ballot for ballot in ballots if ballot.voter not in clickers]
            both = [[pair.win_rate.high - pair.win_rate.low for pair in rate_systems(part, seed, draws).pairs]
                    for part in (ballots, rest)]  # fmt: skip
            wider.append(float(np.mean(both[0]) / np.mean(both[1])))
    return {
        "people": study.people,
        "votes each": study.votes_each,
        "systems": len(study.strengths),
        "taste": study.taste,
        "clickers": len(clickers),
        "clicker named": float(np.mean(right)) if clickers else None,
        "another named": float(np.mean(wrong)),
        "width with / without": float(np.mean(wider)) if wider else None,
    }


def main() -> None:
    """Run what the command line asks for."""
    made = parser(__doc__)
    made.add_argument("what", choices=("intervals", "random"))
    made.add_argument("--studies", type=int, default=100)
    made.add_argument("--draws", type=int, default=400, help="of each bootstrap")
    arguments = made.parse_args()
    rows: list[dict[str, Any]] = []
    if arguments.what == "intervals":
        for people, (taste, luck), strengths in itertools.product((5, 20), SPREADS, ((0, 0.4, 0.8, 1.2), (0, 0.4))):
            study = SimulatedStudy(strengths=strengths, people=people, taste=taste, luck=luck)
            rows.append(measure_intervals(study, arguments.studies, arguments.draws))
            print(rows[-1], file=sys.stderr, flush=True)  # what is known if it is stopped
    else:
        for (people, votes), taste, clickers in itertools.product(((5, 60), (5, 120), (20, 60)), (0.4, 1.0), (0, 1)):
            study = SimulatedStudy(people=people, votes_each=votes, num_prompts=votes, taste=taste,
                                   random_people=clickers)  # fmt: skip
            rows.append(measure_random(study, arguments.studies, arguments.draws))
            print(rows[-1], file=sys.stderr, flush=True)
    print_table(list(rows[0]), [list(row.values()) for row in rows])
    write_results(arguments.json, {"what": arguments.what, "studies": arguments.studies, "rows": rows})


if __name__ == "__main__":
    main()
