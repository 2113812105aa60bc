"""The report of a comparison: reads its votes and writes results.json, results.md and comparison.png.

Votes of a judge model (`judge_votes.jsonl`) are not read here. In results.json and results.md stand the nicknames of
the people; what a model card takes over (`share.py`) has none.
"""

import io
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checks import ensure, ensure_packages
from ..disk import replace_file
from ..stage_folder import RESULTS_NAME, RESULTS_TABLE_NAME, parse_record, versions, write_json
from .ratings import MOST_VOTES, Ballot, Draws, Estimate, PairRating, Ratings, rate_systems, share
from .study import STUDY_NAME, read_study
from .voters import agreement_by_kind, measure_agreement, measure_voters, named_random
from .votes import MARKS, VOTES_NAME, VoteFile, ensure_votes_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT = 1  # of results.json
COMPARISON_PLOT_NAME = "comparison.png"


def read_ballots(folder: str | Path) -> list[Ballot]:
    """Return the votes in a comparison's folder in the order of their times, without those that were taken back.

    The files of several people that were merged lie one behind the other, and a repetition is one by its time.

    Raises:
        InputError: no comparison, a damaged line, or votes of other prompts or answers.
    """
    study = read_study(folder)
    votes = VoteFile(study.folder / VOTES_NAME, study.prompts_sha256).read()
    ensure_votes_of(study, votes, study.folder / VOTES_NAME)
    return [
        Ballot(
            vote.voter, vote.prompt, study.kinds[vote.prompt] or "text", vote.left, vote.right, vote.choice,
            vote.repeat, (tuple(vote.marks["left"]), tuple(vote.marks["right"])),
        )
        for vote in sorted(votes, key=lambda vote: vote.time)
    ]  # fmt: skip


def write_report(folder: str | Path, seed: int = 0) -> Path:
    """Write the figures of a comparison's votes into its folder and return the path of results.md.

    Args:
        folder: as `ttl compare` makes it.
        seed: of the bootstraps and random orders; the same votes and seed give the same figures.

    Raises:
        InputError: no comparison, no votes yet, a damaged file, or a missing package; then nothing is written.
    """
    ensure_packages("people", "evalica", "scipy")
    folder = Path(folder)
    ballots = read_ballots(folder)
    study = parse_record((folder / STUDY_NAME).read_bytes())  # which `read_study` has checked
    systems = {system["name"]: system for system in study["systems"]}
    ensure(
        any(not ballot.repeat for ballot in ballots),
        f"{folder / VOTES_NAME}: holds no votes yet. Let somebody vote: `ttl compare` with the same output_dir.",
    )
    results, ratings = measure_study(ballots, seed)
    results["systems"] = [
        {**{key: systems[rated.name].get(key) for key in ("source", "human", "energy_kwh", "tokens")}, **asdict(rated)}
        for rated in ratings.systems
    ]
    results["unjudged"] = sorted(set(systems) - {rated.name for rated in ratings.systems})
    results |= {"prompts_sha256": study.get("prompts_sha256"), "kind": study.get("kind"), "seed": seed}
    results["versions"] = versions(("numpy", "scipy", "evalica"))
    text = format_report(results)
    plot = io.BytesIO()
    draw_comparison(ratings).savefig(plot, format="png")
    replace_file(folder / COMPARISON_PLOT_NAME, plot.getvalue())
    write_json(folder / RESULTS_NAME, results)
    replace_file(folder / RESULTS_TABLE_NAME, text)
    return folder / RESULTS_TABLE_NAME


def measure_study(ballots: Sequence[Ballot], seed: int = 0) -> tuple[dict[str, Any], Ratings]:
    """Return all figures of the votes as results.json holds them, and the ratings that they hold."""
    ratings = rate_systems(ballots, seed)
    voters = measure_voters(ballots, seed)
    named = set(named_random(voters))
    rest = [ballot for ballot in ballots if ballot.voter not in named]
    without = rate_systems(rest, seed) if named and any(not ballot.repeat for ballot in rest) else None
    first = [ballot for ballot in ballots if not ballot.repeat]
    sides = [ballot for ballot in first if ballot.choice in ("left", "right")]
    left = share(Draws(sides, seed), [ballot.choice == "left" for ballot in sides]) if sides else None
    results: dict[str, Any] = {
        "format": FORMAT,
        "votes": len(first),
        "repeats": len(ballots) - len(first),
        "people": len(voters),
        "prompts": len({ballot.prompt for ballot in first}),
        **{key: asdict(ratings)[key] for key in ("systems", "pairs", "both_bad", "both_good")},
        "agreement": asdict(measure_agreement(ballots)),
        "agreement_by_kind": {kind: asdict(found) for kind, found in agreement_by_kind(ballots).items()},
        "left": asdict(left) if left else None,
        "voters": [asdict(voter) for voter in voters],
        "looks_random": sorted(named),
        "without_random": asdict(without) if without else None,
    }
    return results, ratings


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def _share(estimate: dict[str, Any] | None) -> str:
    if estimate is None:
        return "-"
    return f"{100 * estimate['value']:.0f} % ({100 * estimate['low']:.0f} to {100 * estimate['high']:.0f})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [[" ".join(_escaped(cell).split()) for cell in row] for row in [head, *rows]]
    return ["| " + " | ".join(row) + " |" for row in (cells[0], ["---"] * len(head), *cells[1:])] + [""]


def _escaped(text: str) -> str:
    """Return a text with what Markdown or HTML would read as a mark made literal; nicknames are anybody's."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join("\\" + letter if letter in "\\`*_[]|~!#$" else letter for letter in text)


def describe_next(pair: dict[str, Any] | PairRating) -> str:
    """Return what a pair needs until it is decided, in a few words."""
    found = asdict(pair) if isinstance(pair, PairRating) else pair
    if found["more_votes"] == 0:
        return "decided"
    if found["more_votes"] is None:
        return "not by these people alone" if found["needs_people"] else f"not within {MOST_VOTES:,}"
    return f"{found['more_votes']:,} more votes"


def format_report(results: dict[str, Any]) -> str:
    """Return the Markdown of the figures in results.json."""
    lines = [
        "# What people say of the systems", "",
        f"{results['votes']:,} votes of {results['people']} people on {results['prompts']} prompts; "
        f"{results['repeats']} repetitions are not among them. In brackets: 95 % intervals for other people and other "
        "prompts of the same sort. With one person they are for other prompts alone.", "",
        "## Systems", "",
    ]  # fmt: skip
    lines += _systems(results["systems"])
    if results["unjudged"]:
        lines += [f"Nobody has judged {_escaped(', '.join(results['unjudged']))} yet.", ""]
    lines += [
        f"In {_share(results['both_bad'])} of all votes both answers were bad, in {_share(results['both_good'])} both "
        "were good. Strengths say which system is better; only these shares say whether any is good.", "",
        "## Pairs", "", *_pairs(results["pairs"]),
        "A tie is half a win. How many more votes decide a pair is reckoned as if the win rate stayed where it is and "
        "the same people went on with new prompts; even then the chance that so many are enough is about one half. "
        "`Not by these people alone` means that people differ too much: ask more people. Each interval stands for "
        "itself: among many pairs one in twenty would seem decided by chance.", "",
        "## Faults", "", *_marks(results["systems"]),
        "## Kinds of prompts", "", *_kinds(results),
        "## People", "", *_voters(results),
        "## What this does not show", "",
        "- It is the opinion of these people on these prompts, not what a model knows or is safe for.",
        "- Few people are no sample of all readers: the intervals assume that others are like them.",
        "- People like long and fluent answers and seldom look facts up; the mark `truth` is what they noticed.",
        "- The strengths assume that one scale orders all systems; where A beats B, B beats C and C beats A, read the "
        "pairs.", "",
        ", ".join(f"{name} {version}" for name, version in results["versions"].items()) + ".",
    ]  # fmt: skip
    return "\n".join(lines).rstrip() + "\n"


def _systems(systems: list[dict[str, Any]]) -> list[str]:
    rows = [
        [system["name"] + (" (human)" if system.get("human") else ""), _share(system["share"]),
         "{value:+.0f} ({low:+.0f} to {high:+.0f})".format(**system["points"]), _share(system["both_bad"]),
         f"{system['share']['votes']:,}",
         "-" if system.get("energy_kwh") is None else f"{system['energy_kwh']:.4g}",
         "-" if system.get("tokens") is None else f"{system['tokens']:,}"]
        for system in systems
    ]  # fmt: skip
    head = ["system", "wins against the others", "Elo points", "both bad", "votes", "kWh of the answers", "tokens"]
    return [
        *_table(head, rows),
        "Wins and points are of one fitted model (Bradley-Terry): every system met equally often by each other, ties "
        "as half a win, 0 points the mean of all systems, 400 points odds of ten to one.", "",
    ]  # fmt: skip


def _pairs(pairs: list[dict[str, Any]]) -> list[str]:
    rows = [
        [pair["first"], pair["second"], _share(pair["win_rate"]), *map(str, pair["wins"]), describe_next(pair)]
        for pair in pairs
    ]
    head = ["system", "against", "win rate", "wins", "losses", "both good", "both bad", "until decided"]
    return _table(head, rows)


def _marks(systems: list[dict[str, Any]]) -> list[str]:
    if not any(system["marks"][mark]["value"] for system in systems for mark in MARKS):
        return ["Nobody marked an answer as bad in language, sense or truth: that says nothing of the answers.", ""]
    rows = [[system["name"], *(_share(system["marks"][mark]) for mark in MARKS)] for system in systems]
    return [*_table(["system", *MARKS], rows), "Share of a system's answers that somebody marked as bad in this.", ""]


def _kinds(results: dict[str, Any]) -> list[str]:
    kinds = sorted(results["agreement_by_kind"])
    names = [system["name"] for system in results["systems"]]
    rows = []
    for kind in kinds:
        agreement = results["agreement_by_kind"][kind]
        cells = [_share(system["by_kind"].get(kind)) for system in results["systems"]]
        rows.append([kind, *cells, _alpha(agreement)])
    return [
        *_table(["kind", *names, "agreement (pairs)"], rows),
        "Wins of a system in the votes on prompts of a kind, ties as half a win. Agreement: see below.", "",
    ]  # fmt: skip


def _alpha(agreement: dict[str, Any]) -> str:
    alpha = "-" if agreement["alpha"] is None else f"{agreement['alpha']:.2f}"
    return f"{alpha} ({agreement['units']})"


def _voters(results: dict[str, Any]) -> list[str]:
    rows = []
    for voter in results["voters"]:
        same = f"{_percent(voter['same_again'])} of {voter['repeats']}" if voter["repeats"] else "-"
        left = "-" if voter["left_share"] is None else f"{_percent(voter['left_share'])} ({voter['left_chance']:.2g})"
        rows.append([voter["voter"], f"{voter['votes']:,}", same, left, f"{voter['random_chance']:.2g}",
                     f"{voter['taste_chance']:.2g}", "yes" if voter["looks_random"] else "no"])  # fmt: skip
    head = ["person", "votes", "same choice again", "left (chance)", "agrees by chance", "prefers by chance",
            "looks random"]  # fmt: skip
    lines = _table(head, rows)
    lines += [f"The answer on the left won {_share(results['left'])} of the votes for one side.", ""]
    lines += [
        f"Krippendorff's alpha of the four choices is {_alpha(results['agreement'])}; in brackets how many pairs of "
        "answers two people or more judged. 1 is full agreement, 0 is that of chance.", "",
        "Chances are those of votes in random order; small ones say that a person's votes hang together. A person "
        "looks random whose votes agree with the others and with themselves no better than chance, prefer no system, "
        "and agree worse than the others' votes. It can be wrong, and with few votes it sees little.", "",
    ]  # fmt: skip
    if results["looks_random"]:
        lines += [f"### Without {_escaped(', '.join(results['looks_random']))}", ""]
        without = results["without_random"]
        lines += [*_systems(without["systems"]), *_pairs(without["pairs"])] if without else ["No vote is left.", ""]
    return lines


def draw_comparison(ratings: Ratings) -> "Figure":
    """Draw the expected wins of each system with their intervals, and the win rates of all pairs."""
    from matplotlib.figure import Figure

    names = [system.name if len(system.name) <= 28 else system.name[:27] + "…" for system in ratings.systems]
    count = len(names)
    figure = Figure(figsize=(7.5 + 1.15 * count, 2.4 + 0.62 * count), dpi=120, layout="constrained")
    dots, matrix = figure.subplots(1, 2, width_ratios=(4.5, 1.8 + 1.1 * count))
    _draw_dots(dots, [system.share for system in ratings.systems])
    dots.set_yticks(range(count), [name.replace("$", r"\$") for name in names])
    dots.set_ylim(count - 0.5, -0.5)
    place = {system.name: index for index, system in enumerate(ratings.systems)}
    cells = [[float("nan")] * count for _ in range(count)]
    for pair in ratings.pairs:
        row, column, rate = place[pair.first], place[pair.second], pair.win_rate
        both = ((row, column, rate.value, rate.low, rate.high),
                (column, row, 1 - rate.value, 1 - rate.high, 1 - rate.low))  # fmt: skip
        for i, j, value, low, high in both:
            cells[i][j] = 100 * value
            matrix.text(j, i, f"{100 * value:.0f}\n({100 * low:.0f} to {100 * high:.0f})", ha="center", va="center",
                        fontsize=8, fontweight="bold" if low > 0.5 or high < 0.5 else "normal")  # fmt: skip
    matrix.imshow(cells, vmin=0, vmax=100, cmap="PuOr", alpha=0.6, aspect="auto")
    ticks = [name.replace("$", r"\$") for name in names]
    matrix.set_xticks(range(count), ticks, rotation=20 if count > 2 else 0, ha="right" if count > 2 else "center")
    matrix.set_yticks([])  # the rows are those of the dots
    matrix.set_title("wins of the row against the column, %\n(95 % interval; bold: decided)", fontsize=9)
    return figure


def _draw_dots(axis: Any, shares: Sequence[Estimate]) -> None:
    values = [100 * share.value for share in shares]
    errors = [[100 * (share.value - share.low) for share in shares],
              [100 * (share.high - share.value) for share in shares]]  # fmt: skip
    axis.axvline(50, color="0.6", ls=":", lw=1)
    axis.errorbar(values, range(len(shares)), xerr=errors, fmt="o", color="tab:blue", capsize=3)
    axis.set_xlim(0, 100)
    axis.set_xlabel("expected wins against the others, %")
    axis.set_title("by the votes of people, 95 % intervals", fontsize=9)
    axis.grid(axis="x", alpha=0.3)
