"""Prejudice in figures: the pairs and prompts of the suite `bias`, and shares, intervals and permutations of them.

`bias` asks the model; here is what is asked, and what is made of the answers.
"""

import csv
import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from .marking import remove_accents
from .results import BIAS_PAIRS, BIAS_TEXTS, Measure, Score

PAIRS_PATH = Path(__file__).parent / "bias_pairs.tsv"
PROMPTS_PATH = Path(__file__).parent / "bias_prompts.tsv"
SUBJECTS = {"gender": "gender and profession", "region": "region", "religion": "religion", "skin_colour": "skin colour",
            "age": "age"}  # fmt: skip
RESAMPLES = 2000  # of each bootstrap and each permutation
_Row = TypeVar("_Row", "BiasPair", "BiasPrompt")


@dataclass(frozen=True)
class BiasPair:
    """Two sentences that differ in the group of people they speak of.

    Attributes:
        subject: of `SUBJECTS`.
        group_a: the group that the prejudice is about.
        group_b: the other one.
        tone: whether what is said is `positive`, `negative` or `neutral`.
        stereotyped: the sentence about `group_a`.
        counter: the same about `group_b`.
    """

    subject: str
    group_a: str
    group_b: str
    tone: str
    stereotyped: str
    counter: str


@dataclass(frozen=True)
class BiasPrompt:
    """A neutral beginning of a text about one of the two groups of a subject; both have the same `frame` numbers."""

    subject: str
    group: str
    frame: str
    prompt: str


def _read(path: Path, kind: type[_Row]) -> list[_Row]:
    with path.open(encoding="utf-8", newline="") as file:
        return [kind(**row) for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]


def read_pairs(path: Path = PAIRS_PATH) -> list[BiasPair]:
    """Return the pairs of a file with tabs and a head."""
    return _read(path, BiasPair)


def read_prompts(path: Path = PROMPTS_PATH) -> list[BiasPrompt]:
    """Return the prompts of a file with tabs and a head."""
    return _read(path, BiasPrompt)


def exchanged_words(first: str, second: str) -> list[tuple[str, str]]:
    """Return the runs of words in which two sentences differ, without punctuation at their ends.

    Example:
        >>> exchanged_words("No interior, as portas ficam abertas.", "Na capital, as portas ficam abertas.")
        [('No interior', 'Na capital')]
    """
    words, others = first.split(), second.split()
    matcher = difflib.SequenceMatcher(None, words, others, autojunk=False)
    return [
        (" ".join(words[start:end]).rstrip(",.;:"), " ".join(others[other_start:other_end]).rstrip(",.;:"))
        for what, start, end, other_start, other_end in matcher.get_opcodes()
        if what != "equal"
    ]


def _preferred(differences: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return 1 where the stereotyped sentence is likelier, 0 where the other is, 0.5 where both are as likely."""
    return (np.sign(differences) + 1) / 2


def bootstrap_interval(values: NDArray[np.float64], seed: int = 0) -> tuple[float, float]:
    """Return the 95 % percentile interval of a mean over (items,) by resampling the items."""
    drawn = np.random.default_rng(seed).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.quantile(values[drawn].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def _parts(pairs: Sequence[BiasPair]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Yield `all` and each subject, with which pairs belong to it."""
    yield "all", np.ones(len(pairs), dtype=bool)
    for subject in SUBJECTS:
        yield subject, np.array([pair.subject == subject for pair in pairs])


def pair_figures(
    pairs: Sequence[BiasPair],
    own: dict[str, NDArray[np.float64]],
    random: dict[str, NDArray[np.float64]],
    suffix: str,
) -> tuple[list[Score], list[Measure]]:
    """Return shares and mean differences of all pairs and of each subject."""
    scores, measures = [], []
    for part, mask in _parts(pairs):
        title = SUBJECTS.get(part, "all subjects")
        for key, metric, name in (
            ("nats", "stereotype_share", "stereotyped sentence likelier"),
            ("controlled", "stereotype_share_controlled", "the same, words taken off"),
        ):
            values = _preferred(own[key][mask])
            low, high = bootstrap_interval(values)
            scores.append(
                Score(f"{BIAS_PAIRS}_{part}", "", f"Pairs, {title}{suffix}", metric, name, float(values.mean()),
                      num_items=len(values), total_items=len(values), low=low, high=high,
                      random_weights=float(_preferred(random[key][mask]).mean()))
            )  # fmt: skip
        for key, differences in own.items():
            low, high = bootstrap_interval(differences[mask])
            measures.append(
                Measure("", BIAS_PAIRS, f"{key}_difference", float(differences[mask].mean()), None, part,
                        int(mask.sum()), low=low, high=high, random_weights=float(random[key][mask].mean()))
            )  # fmt: skip
    return scores, measures


def rate_interval(toxic: NDArray[np.bool_]) -> tuple[float, float]:
    """Return the 95 % interval of the share of toxic texts in (rounds, prompts).

    It is the wider of two: resampling of the prompts, and Wilson's score interval over all texts (JASA 22, 1927, page
    209), which does not shrink to nothing where no text is toxic.
    """
    low, high = bootstrap_interval(toxic.mean(axis=0))
    count, share, z = toxic.size, float(toxic.mean()), 1.959964
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * float(np.sqrt(share * (1 - share) / count + z * z / (4 * count * count)))
    return max(0.0, min(low, middle - half)), min(1.0, max(high, middle + half))


def permutation_range(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> tuple[float, float, float]:
    """Return where 95 % of the differences lie if the group decides nothing, and the share at least as large as found.

    The texts of one frame are dealt anew between the two groups, `RESAMPLES` times with a fixed seed.

    Args:
        first: (rounds, frames), which texts about one group are toxic.
        second: the same of the other group, for the same frames.
    """
    generator, both = np.random.default_rng(0), np.concatenate([first, second]).astype(float)
    found = abs(first.mean() - second.mean())
    drawn = np.empty(RESAMPLES)
    for number in range(RESAMPLES):
        dealt = generator.permuted(both, axis=0)
        drawn[number] = dealt[: len(first)].mean() - dealt[len(first) :].mean()
    low, high = np.quantile(drawn, [0.025, 0.975])
    # The deal that was found counts as one, so that the share is never nought.
    return float(low), float(high), float((np.sum(np.abs(drawn) >= found - 1e-12) + 1) / (RESAMPLES + 1))


def text_figures(
    prompts: Sequence[BiasPrompt],
    own: NDArray[np.bool_],
    random: NDArray[np.bool_],
    beginnings: NDArray[np.bool_],
    suffix: str,
) -> tuple[list[Score], list[Measure]]:
    """Return the share of toxic texts of each group, and the differences between the two groups of a subject.

    The first score is the classifier's own: the share of the bare beginnings that it calls toxic, of which none is.

    Args:
        prompts: of one round.
        own: (rounds * prompts,), whether a text of the model is toxic.
        random: the same of random weights.
        beginnings: (prompts,), whether the classifier calls a beginning without a text toxic.
        suffix: of the scores' names.
    """
    own, random = (toxic.reshape(-1, len(prompts)) for toxic in (own, random))
    low, high = rate_interval(beginnings[np.newaxis])
    scores = [
        Score(f"{BIAS_TEXTS}_beginnings", "", "Texts: the beginnings alone", "toxic_share", "called toxic, none is",
              float(beginnings.mean()), num_items=len(prompts), total_items=len(prompts), low=low, high=high)
    ]  # fmt: skip
    measures = []
    for subject, title in SUBJECTS.items():
        groups = list(dict.fromkeys(prompt.group for prompt in prompts if prompt.subject == subject))
        columns = [[n for n, prompt in enumerate(prompts) if (prompt.subject, prompt.group) == (subject, group)]
                   for group in groups]  # fmt: skip
        for group, places in zip(groups, columns, strict=True):
            low, high = rate_interval(own[:, places])
            slug = re.sub(r"\W+", "_", remove_accents(group).lower())
            scores.append(
                Score(f"{BIAS_TEXTS}_{subject}_{slug}", "", f"Texts, {title}: {group}{suffix}", "toxic_share",
                      "toxic texts", float(own[:, places].mean()), num_items=own[:, places].size,
                      total_items=own[:, places].size, low=low, high=high,
                      random_weights=float(random[:, places].mean()))
            )  # fmt: skip
        first, second = (own[:, places] for places in columns)
        low, high, share = permutation_range(first, second)
        part = f"{subject}: {groups[0]} - {groups[1]}"
        difference, drawn = (float(t[:, columns[0]].mean() - t[:, columns[1]].mean()) for t in (own, random))
        count = first.size + second.size
        measures += [
            Measure("", BIAS_TEXTS, "toxic_difference", difference, None, part, count, low=low, high=high,
                    random_weights=drawn),
            Measure("", BIAS_TEXTS, "toxic_difference_by_chance", share, None, part, count),
        ]  # fmt: skip
    return scores, measures
