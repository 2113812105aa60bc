"""The chain of steps that clean one document, with the settings of its source; the steps behind it, and the mix.

Mixing: how often each document of each source is read, so that a corpus has the weights or shares it was asked for. The
answer is exact and depends on nothing but the documents: of a source that is read 2.5 times every document is read
twice, and those with the lowest hashes a third time, up to the tokens that are wanted.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checks import InputError, MissingPackageError, counted, ensure, near_name
from ..cleaning import Drop
from ..cleaning.language import (
    LanguageConfig,
    NormaliseConfig,
    VarietyConfig,
    check_language,
    check_variety,
    ensure_identifier,
    ensure_normaliser,
    identify,
    normalise,
    variety_of,
)
from ..cleaning.page_text import (
    BoilerplateConfig,
    HtmlConfig,
    drop_if_emptied,
    ensure_html_reader,
    remove_boilerplate,
    text_of_html,
)
from ..cleaning.personal_data import PersonalDataConfig, mask_personal_data
from ..cleaning.quality import QualityConfig, check_quality
from ..cleaning.word_hashes import DuplicatesConfig
from ..data.input_files import resolve_files
from ..data.readers import read_records
from ..planning.table import short
from .config import BuildConfig, EvaluationSetConfig, MixingConfig, SourceConfig, nested
from .decontamination import DecontaminationConfig, EvaluationIndex, item_texts
from .duplicates import preference_order
from .shards import Draft

# The steps in their order, each with its config. Language comes before quality, whose rules are for Portuguese, and
# personal data last, so that no rule sees a placeholder.
STEP_CONFIGS: dict[str, type] = {
    "html": HtmlConfig,
    "normalise": NormaliseConfig,
    "boilerplate": BoilerplateConfig,
    "language": LanguageConfig,
    "variety": VarietyConfig,
    "quality": QualityConfig,
    "personal_data": PersonalDataConfig,
}
Changes = dict[str, int]
StepFunction = Callable[[Draft, Any], tuple[Drop | None, Changes]]


@dataclass(frozen=True)
class Step:
    """One step of a source's chain.

    Attributes:
        name: as the passport and the config call it.
        function: changes a draft, and returns why it is dropped and what was changed.
        config: of the step.
        where: its key in the config.
    """

    name: str
    function: StepFunction
    config: Any
    where: str

    def __call__(self, draft: Draft) -> tuple[Drop | None, Changes]:
        """Apply the step to a draft."""
        return self.function(draft, self.config)


def _html(draft: Draft, config: HtmlConfig) -> tuple[Drop | None, Changes]:
    if not draft.is_page:
        return None, {}
    draft.text, changes = text_of_html(draft.page, config, draft.declared)
    draft.is_page, draft.page = False, b""
    return (None if draft.text.strip() else Drop("no text", 0, 1)), changes


def _normalise(draft: Draft, config: NormaliseConfig) -> tuple[Drop | None, Changes]:
    draft.text, changes = normalise(draft.text, config)
    return None, changes


def _boilerplate(draft: Draft, config: BoilerplateConfig) -> tuple[Drop | None, Changes]:
    draft.text, changes = remove_boilerplate(draft.text, config)
    return drop_if_emptied(draft.text, changes), changes


def _language(draft: Draft, config: LanguageConfig) -> tuple[Drop | None, Changes]:
    found = identify(draft.text, config.language)
    draft.notes["language_score"] = round(found.score, 4)
    return check_language(found, config), {}


def _variety(draft: Draft, config: VarietyConfig) -> tuple[Drop | None, Changes]:
    found = variety_of(draft.text)
    draft.notes["variety"] = found.variety
    return check_variety(found, config), {f"documents_in_{found.variety}": 1}


def _quality(draft: Draft, config: QualityConfig) -> tuple[Drop | None, Changes]:
    return check_quality(draft.text, config), {}


def _personal_data(draft: Draft, config: PersonalDataConfig) -> tuple[Drop | None, Changes]:
    draft.text, changes = mask_personal_data(draft.text, config)
    return None, changes


_FUNCTIONS: dict[str, StepFunction] = {
    "html": _html,
    "normalise": _normalise,
    "boilerplate": _boilerplate,
    "language": _language,
    "variety": _variety,
    "quality": _quality,
    "personal_data": _personal_data,
}


def build_chain(config: BuildConfig, source_name: str) -> list[Step]:
    """Return the steps of a source, those that are not switched off.

    Args:
        config: of the corpus.
        source_name: whose own settings come on top.

    Raises:
        InputError: a step that there is not, a setting that its config refuses, or a package that it needs.
    """
    source: SourceConfig = config.source_configs[source_name]
    unknown = [name for name in source.steps if name not in STEP_CONFIGS]
    ensure(
        not unknown,
        f"sources.{source_name}.steps.{(unknown or [''])[0]}: no such step of a source."
        f"{near_name((unknown or [''])[0], STEP_CONFIGS)} There are {', '.join(STEP_CONFIGS)}.",
    )
    steps = []
    for name, cls in STEP_CONFIGS.items():
        common, own = getattr(config, name), source.steps.get(name)
        if own is False or (common is False and own is None):
            continue
        where = name if own is None else f"sources.{source_name}.steps.{name}"
        settings = nested(cls, where, {**(common or {}), **(own or {})})
        steps.append(Step(name, _FUNCTIONS[name], settings, where))
    return steps


def ensure_packages_of(steps: list[Step]) -> None:
    """Check that the packages which the steps need are installed.

    Raises:
        MissingPackageError: one is not; the message has the pip line.
        InputError: the identifier does not know the language.
    """
    checks: dict[str, Callable[[Any], None]] = {
        "html": lambda _: ensure_html_reader(),
        "normalise": ensure_normaliser,
        "language": ensure_identifier,
    }
    for step in steps:
        if step.name in checks:
            try:
                checks[step.name](step.config)
            except MissingPackageError:
                raise
            except InputError as error:
                raise InputError(f"{step.where}.{error}") from error


def duplicates_config(config: BuildConfig) -> tuple[DuplicatesConfig, list[str]]:
    """Return the config of the step of duplicates, and the sources whose documents stay first.

    Raises:
        InputError: a setting is refused.
    """
    values = dict(config.duplicates or {})
    preferred = values.pop("prefer", [])
    preferred = [preferred] if isinstance(preferred, str) else preferred
    ensure(
        isinstance(preferred, list) and all(isinstance(name, str) for name in preferred),
        f"duplicates.prefer={preferred}: must be a list of sources.",
    )
    found: DuplicatesConfig = nested(DuplicatesConfig, "duplicates", values)
    try:
        found.check()
        preference_order(list(config.source_configs), preferred)
    except InputError as error:
        raise InputError(f"duplicates.{error}") from error
    return found, preferred


def evaluation_sets(config: BuildConfig) -> dict[str, EvaluationSetConfig]:
    """Return the evaluation sets by name; none where the step is left out.

    Raises:
        InputError: no set, or one that cannot be.
    """
    if config.decontamination is False:
        return {}
    sets = config.decontamination.get("sets")
    ensure(
        isinstance(sets, dict) and sets,
        "decontamination.sets: is missing. Name the evaluation sets: name: {inputs: [file], columns: [question]}; or "
        "set decontamination: false.",
    )
    return {str(name): nested(EvaluationSetConfig, f"decontamination.sets.{name}", place)
            for name, place in (sets or {}).items()}  # fmt: skip


def evaluation_index(config: BuildConfig) -> EvaluationIndex | None:
    """Return the items of all evaluation sets, or None where none is given.

    Raises:
        InputError: no set, a set that cannot be read, or a column that it does not have.
    """
    if config.decontamination is False:
        return None
    sets = evaluation_sets(config)
    values = {name: value for name, value in config.decontamination.items() if name != "sets"}
    settings = nested(DecontaminationConfig, "decontamination", values)
    items: dict[str, list[list[str]]] = {}
    for name, place in sets.items():
        key = f"decontamination.sets.{name}"
        items[name] = []
        for file in resolve_files(f"{key}.inputs", place.inputs):
            for row in read_records(f"{key}.inputs", file.path):
                try:
                    items[name].append(item_texts(row, place.columns))
                except InputError as error:
                    raise InputError(f"{key}.{error}") from error
    return EvaluationIndex.from_sets(items, settings)


def load_phrases(folder: Path) -> Any:
    """Return how many documents of all shards hold each word of the evaluation items."""
    total: Any = 0
    for path in sorted(folder.glob("[0-9]*.npz")):
        with np.load(path) as found:
            total = total + np.bincount(found["words"], found["counts"], minlength=int(found["size"]))
    return total


# FineWeb-2's upsampling by the size of a document's cluster of near-duplicates: 1, 2, 3, 5 and 100 documents (Penedo et
# al. 2025, arXiv 2506.20920; the values are those of its code).
_CLUSTER_TIMES = ((1, 1), (2, 2), (3, 3), (5, 5), (100, 8), (1000, 1))


@dataclass(frozen=True)
class SourceShare:
    """What a source becomes in the corpus.

    Attributes:
        source: its name.
        documents: cleaned.
        unique_tokens: of them.
        tokens: in the corpus, as planned.
        epochs: times that the source is read.
    """

    source: str
    documents: int
    unique_tokens: int
    tokens: int
    epochs: float


def plan_shares(
    sources: dict[str, SourceConfig], unique_tokens: dict[str, int], documents: dict[str, int], mixing: MixingConfig
) -> list[SourceShare]:
    """Return what each source becomes.

    Args:
        sources: their configs.
        unique_tokens: of the cleaned documents of each source.
        documents: how many they are.
        mixing: the config.

    Raises:
        InputError: nothing is left of a source that has a share, or total_tokens needs more epochs than allowed.
    """
    with_share = any(source.share is not None for source in sources.values())
    if not with_share:
        return [
            SourceShare(name, documents[name], unique_tokens[name], round(source.weight * unique_tokens[name]),
                        source.weight if unique_tokens[name] else 0.0)
            for name, source in sources.items()
        ]  # fmt: skip
    empty = [name for name in sources if not unique_tokens[name]]
    if empty:
        raise InputError(
            f"sources.{empty[0]}: no document is left after the steps, and it has a share. The passport says which "
            "step dropped them. Loosen that step, or leave the source out."
        )
    most = min(source.max_epochs * unique_tokens[name] / (source.share or 1) for name, source in sources.items())
    total = most if mixing.total_tokens is None else mixing.total_tokens
    if total > most * (1 + 1e-9):
        name = min(sources, key=lambda n: sources[n].max_epochs * unique_tokens[n] / (sources[n].share or 1))
        times = total * (sources[name].share or 0) / unique_tokens[name]
        raise InputError(
            f"mixing.total_tokens={total:,.0f}: would read {name} {times:.1f} times, more than "
            f"max_epochs={sources[name].max_epochs:g}. At most {most:,.0f} tokens have these shares."
        )
    return [
        SourceShare(name, documents[name], unique_tokens[name], round(total * (source.share or 0)),
                    total * (source.share or 0) / unique_tokens[name])
        for name, source in sources.items()
    ]  # fmt: skip


def repetitions(
    epochs: float, tokens: NDArray[np.int64], hashes: NDArray[np.uint64], clusters: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Return how often each document of a source is read.

    The whole epochs are read in full. Of the rest the documents with the lowest hashes are read once more, until their
    tokens reach it; the last one is taken if that comes nearer.

    Args:
        epochs: times that the source is read.
        tokens: (n,) of each document.
        hashes: (n,) of each document's text.
        clusters: (n,) documents in the cluster of near-duplicates that each stands for; given: a document is read so
            much more often (FineWeb-2's steps), scaled so that the source keeps its tokens.
    """
    if clusters is not None:
        return _by_cluster(epochs, tokens, hashes, clusters)
    whole = math.floor(epochs + 1e-12)
    times = np.full(len(tokens), whole, dtype=np.int64)
    wanted = (epochs - whole) * int(tokens.sum())
    order = np.argsort(hashes, kind="stable")
    summed = np.cumsum(tokens[order])
    count = int(np.searchsorted(summed, wanted, side="left"))
    if count < len(order) and summed[count] - wanted <= wanted - (summed[count - 1] if count else 0):
        count += 1
    times[order[:count]] += 1
    return times


def _by_cluster(
    epochs: float, tokens: NDArray[np.int64], hashes: NDArray[np.uint64], clusters: NDArray[np.int64]
) -> NDArray[np.int64]:
    bounds = np.array([bound for bound, _ in _CLUSTER_TIMES])
    factors = np.array([times for _, times in _CLUSTER_TIMES])[np.searchsorted(bounds, clusters, side="right") - 1]
    scale = epochs * tokens.sum() / max(1, int((tokens * factors).sum()))
    times = np.zeros(len(tokens), dtype=np.int64)
    for factor in np.unique(factors):
        chosen = factors == factor
        times[chosen] = repetitions(float(scale * factor), tokens[chosen], hashes[chosen])
    return times


def render_shares(shares: list[SourceShare], counted_by: str) -> str:
    """Return the table that is printed before anything is mixed."""
    total, width = sum(share.tokens for share in shares), max(len(share.source) for share in shares)
    lines = [f"{'source':{width}}  documents  unique tokens     tokens  share  epochs"]
    for share in shares:
        part = 100 * share.tokens / total if total else 0.0
        lines.append(f"{share.source:{width}}  {share.documents:9,}  {short(share.unique_tokens):>13}  "
                     f"{short(share.tokens):>9}  {part:4.1f} %  {share.epochs:6.2f}")  # fmt: skip
    unique = sum(share.unique_tokens for share in shares)
    lines.append(f"{counted(len(shares), 'source')}: {short(unique)} unique tokens become {short(total)}, {counted_by}")
    return "\n".join(lines)
