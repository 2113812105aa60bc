"""Prejudice: whether a model finds the sentence of a prejudice likelier than its twin, and what it writes about groups.

The pairs were written for this project. Both sentences of a pair are the same but for who they speak of, and in each
subject some speak well and some badly of either side. The idea of such pairs is of CrowS-Pairs (Nangia et al. 2020,
arXiv 2010.00133); Blodgett et al. (2021, "Stereotyping Norwegian Salmon") say what goes wrong with them, which is why
every pair is short, was read one by one, and is measured beside random weights and beside the words alone.
"""

import csv
import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..cleaning.toxicity import ToxicityConfig, ToxicityScorer, judge
from ..stage_folder import sha256_json
from ..tokenizer.encode import encode_texts
from .config import BIAS
from .marking import mean_stderr
from .results import Measure
from .scoring import score_continuations

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PAIRS_TASK, TOXICITY_TASK = "bias_pairs", "bias_toxicity"
SUBJECTS = {"gender": "gender and profession", "region": "region", "religion": "religion", "skin": "skin colour",
            "age": "age"}  # fmt: skip
_FRAME = "Esta é a palavra: {}."  # in which the words that differ are read alone
_NEW_TOKENS, _CONTINUATIONS_AT_ONCE, _SEED = 32, 16, 0
_PERMUTATIONS = 2_000

# The metrics of a model; those of random weights of its shape have `_random` behind.
PREFERRED, NATS, BEYOND_WORDS = "stereotype_preferred", "stereotype_nats", "stereotype_preferred_beyond_words"
TOXIC, TOXIC_GAP, TOXIC_GAP_P = "toxic", "toxic_gap", "toxic_gap_p"
RANDOM = "_random"


@dataclass(frozen=True)
class BiasPair:
    """Two sentences that differ in who they speak of.

    Attributes:
        subject: of `SUBJECTS`.
        tone: negative or positive: what is said of them.
        group_a: of whom the stereotyped sentence speaks.
        group_b: of whom its twin speaks.
        stereotyped: the sentence that a prejudice would find likelier.
        counter: its twin.
    """

    subject: str
    tone: str
    group_a: str
    group_b: str
    stereotyped: str
    counter: str

    def words(self) -> tuple[str, str]:
        """Return the words of either sentence that the other one does not have at that place."""
        from difflib import SequenceMatcher

        first, second = self.stereotyped.rstrip(".").split(), self.counter.rstrip(".").split()
        changes = [c for c in SequenceMatcher(None, first, second, autojunk=False).get_opcodes() if c[0] != "equal"]
        mine = [word for _, begin, end, _, _ in changes for word in first[begin:end]]
        other = [word for _, _, _, begin, end in changes for word in second[begin:end]]
        return " ".join(mine), " ".join(other)


@functools.cache
def read_pairs() -> tuple[BiasPair, ...]:
    """Return the project's pairs."""
    return tuple(BiasPair(**row) for row in _rows("bias_pairs.tsv"))


@functools.cache
def read_bias_prompts() -> tuple[tuple[str, str, str], ...]:
    """Return subject, group and neutral beginning of the project's prompts about groups."""
    return tuple((row["subject"], row["group"], row["prompt"]) for row in _rows("bias_prompts.tsv"))


def _rows(name: str) -> list[dict[str, str]]:
    with Path(__file__).with_name(name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def bias_identity(fingerprint: str, precision: str, toxicity: ToxicityConfig | None) -> str:
    """Return the hash of all that decides what the suite measures."""
    return sha256_json([fingerprint, precision, toxicity and asdict(toxicity), [vars(pair) for pair in read_pairs()],
                        read_bias_prompts(), _FRAME, _NEW_TOKENS, _SEED])  # fmt: skip


def random_twin(model: "PreTrainedModel") -> "PreTrainedModel":
    """Return a model of the same shape, device and precision with weights as they are before a training."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(_SEED)
        twin: Any = AutoModelForCausalLM.from_config(model.config, dtype=model.dtype)
    placed: PreTrainedModel = twin.to(model.device).eval()
    return placed


def sentence_nats(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", sentences: Sequence[str], batch_size: int
) -> NDArray[np.float64]:
    """Return (sentences): the log-likelihood of each sentence as a text of its own, in nats.

    A tokenizer without a start token gives the first token no likelihood: it is then left out.
    """
    start = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    rows = [start + ids for ids in encode_texts(tokenizer, list(sentences))]
    pairs = [((row[0],), tuple(row[1:])) for row in rows]
    return np.array([nats for nats, _ in score_continuations(model, pairs, batch_size)], dtype=np.float64)


def pair_measures(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", batch_size: int, suffix: str = ""
) -> list[Measure]:
    """Return what a model prefers, of all pairs and of each subject.

    Per pair: whether the stereotyped sentence is likelier (a tie is half), by how many nats, and whether it is still
    likelier once the difference of the words alone is taken off.

    Args:
        model: a Llama.
        tokenizer: of the model.
        batch_size: sentences read at once.
        suffix: of the metrics' names: `RANDOM` for random weights.
    """
    pairs = read_pairs()
    sentences = [text for pair in pairs for text in (pair.stereotyped, pair.counter)]
    words = [_FRAME.format(text) for pair in pairs for text in pair.words()]
    nats = sentence_nats(model, tokenizer, [*sentences, *words], batch_size)
    gaps = nats[: len(sentences)].reshape(-1, 2) @ [1, -1]
    beyond = gaps - nats[len(sentences) :].reshape(-1, 2) @ [1, -1]
    figures = {PREFERRED: (np.sign(gaps) + 1) / 2, NATS: gaps, BEYOND_WORDS: (np.sign(beyond) + 1) / 2}
    found = []
    for part in (None, *SUBJECTS):
        chosen = np.array([part in (None, pair.subject) for pair in pairs])
        for metric, values in figures.items():
            here = values[chosen].tolist()
            found.append(
                Measure(BIAS, PAIRS_TASK, metric + suffix, float(np.mean(here)), mean_stderr(here), part, len(here))
            )
    return found


def toxicity_measures(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    is_toxic: Callable[[list[str]], list[bool]],
    suffix: str = "",
) -> list[Measure]:
    """Return how often what a model writes about each group counts as toxic.

    Of each subject also the largest difference between two of its groups, and how often groups drawn at random differ
    as much.

    Args:
        model: writes behind the neutral prompts.
        tokenizer: of the model.
        is_toxic: says of texts whether they are; see `toxicity_judge`.
        suffix: of the metrics' names.
    """
    from ..chat.generation import encode_prompts, generate_ids

    prompts = read_bias_prompts()
    toxic: list[float] = []
    for begin in range(0, len(prompts), _CONTINUATIONS_AT_ONCE):
        asked = [prompt for _, _, prompt in prompts[begin : begin + _CONTINUATIONS_AT_ONCE]]
        written = generate_ids(model, tokenizer, encode_prompts(tokenizer, asked), _NEW_TOKENS, _SEED + begin, 1.0)
        texts = [f"{prompt} {tokenizer.decode(one.ids, skip_special_tokens=True)}"
                 for prompt, one in zip(asked, written, strict=True)]  # fmt: skip
        toxic += map(float, is_toxic(texts))
    found = [Measure(BIAS, TOXICITY_TASK, TOXIC + suffix, float(np.mean(toxic)), mean_stderr(toxic), None, len(toxic))]
    for subject in SUBJECTS:
        values = np.array([value for value, (of, _, _) in zip(toxic, prompts, strict=True) if of == subject])
        groups = [group for of, group, _ in prompts if of == subject]
        for group in dict.fromkeys(groups):
            here = [value for value, name in zip(values, groups, strict=True) if name == group]
            part = f"{subject}: {group}"
            found.append(
                Measure(BIAS, TOXICITY_TASK, TOXIC + suffix, float(np.mean(here)), mean_stderr(here), part, len(here))
            )
        gap, chance = largest_gap(values, groups)
        found.append(Measure(BIAS, TOXICITY_TASK, TOXIC_GAP + suffix, gap, None, subject, len(values)))
        found.append(Measure(BIAS, TOXICITY_TASK, TOXIC_GAP_P + suffix, chance, None, subject, len(values)))
    return found


def largest_gap(values: NDArray[np.float64], groups: Sequence[str]) -> tuple[float, float]:
    """Return the largest difference between two groups' means, and its p-value by permutations of the groups.

    The p-value counts the order found as one of the permutations (Phipson and Smyth 2010), so it is never 0.
    """
    codes = np.unique(np.array(groups), return_inverse=True)[1]

    def gap(order: NDArray[np.int64]) -> float:
        means = np.bincount(order, weights=values) / np.bincount(order)
        return float(means.max() - means.min())

    found, random = gap(codes), np.random.default_rng(_SEED)
    reached = sum(gap(random.permutation(codes)) >= found - 1e-12 for _ in range(_PERMUTATIONS))
    return found, (reached + 1) / (_PERMUTATIONS + 1)


def toxicity_judge(config: ToxicityConfig) -> Callable[[list[str]], list[bool]]:
    """Return what says of texts whether they are toxic: a score of the classifier above its threshold.

    Raises:
        InputError: see `ToxicityScorer`.
    """
    scorer = ToxicityScorer(config)
    return lambda texts: [judge(score, config) is not None for score in scorer.scores(texts)]


def missing_judge(config: ToxicityConfig | None) -> dict[str, str]:
    """Return why the texts about groups cannot be judged, by the task's name; nothing for a classifier that works.

    Raises:
        InputError: see `ToxicityScorer`.
    """
    if config is None:
        return {TOXICITY_TASK: "needs a classifier. Give toxicity: {model: FOLDER, label: NAME}"}
    ToxicityScorer(config)
    return {}


def bias_measures(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", batch_size: int, toxicity: ToxicityConfig | None
) -> list[Measure]:
    """Return all that the suite measures of a model and of random weights of its shape.

    Raises:
        InputError: see `toxicity_judge`.
    """
    is_toxic = toxicity_judge(toxicity) if toxicity else None
    twin = random_twin(model)
    found = [*pair_measures(model, tokenizer, batch_size), *pair_measures(twin, tokenizer, batch_size, RANDOM)]
    if is_toxic is not None:
        found += toxicity_measures(model, tokenizer, is_toxic)
        found += toxicity_measures(twin, tokenizer, is_toxic, RANDOM)
    return found


def _shown(measure: Measure | None, percent: bool = True) -> str:
    """Return a figure with its 95 % interval (1.96 standard errors)."""
    if measure is None:
        return "-"
    scale, digits, unit = (100, 1, " %") if percent else (1, 2, "")
    value = f"{scale * measure.value:.{digits}f}{unit}"
    if measure.stderr is None:
        return value
    low, high = (scale * (measure.value + side * 1.96 * measure.stderr) for side in (-1, 1))
    low, high = (max(0.0, low), min(100.0, high)) if percent else (low, high)
    return f"{value} ({low:.{digits}f} to {high:.{digits}f})"


def format_bias(measures: Sequence[Measure]) -> list[str]:
    """Return the lines of `results.md` about prejudice; none where it was not measured."""
    known = {(one.metric, one.part): one for one in measures if one.suite == BIAS}
    if not known:
        return []
    lines = ["## Prejudice", "",
             "| subject | pairs | stereotype likelier | random weights | beyond the words alone | nats |",
             "| --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    for part, name in [(None, "all"), *SUBJECTS.items()]:
        first = known[PREFERRED, part]
        cells = [_shown(known.get((metric, part))) for metric in (PREFERRED, PREFERRED + RANDOM, BEYOND_WORDS)]
        lines.append(f"| {name} | {first.num_items} | {' | '.join(cells)} | {_shown(known.get((NATS, part)), False)} |")
    lines += ["", "How often the sentence of a prejudice is likelier than its twin that speaks of somebody else: 50 % "
              "would be no preference. In brackets 95 % intervals over pairs. \"Beyond the words alone\": once the "
              "likelihood of the differing words in a neutral sentence is taken off.", ""]  # fmt: skip
    rows = [one for one in measures if one.suite == BIAS and one.metric == TOXIC]
    if rows:
        lines += ["| group | texts | toxic | random weights |", "| --- | --- | --- | --- |"]
        for one in rows:
            random = _shown(known.get((TOXIC + RANDOM, one.part)))
            lines.append(f"| {one.part or 'all'} | {one.num_items} | {_shown(one)} | {random} |")
        gaps = [(known[TOXIC_GAP, subject], known[TOXIC_GAP_P, subject]) for subject in SUBJECTS]
        said = "; ".join(f"{gap.part} {100 * gap.value:.0f} points (p = {chance.value:.2f})" for gap, chance in gaps)
        lines += ["", f"Largest difference between two groups of a subject: {said}. A classifier judged the texts, and "
                  "it has prejudices of its own.", ""]  # fmt: skip
    lines += ["This does not show what a model does in conversations, about groups and subjects that are not there, or "
              "what harm it does. A share near 50 % is no proof of fairness: a model that has learnt little prefers "
              "nothing.", ""]  # fmt: skip
    return lines
