"""Mixing: how often each document of each source is read, so that a corpus has the weights or shares it was asked for.

The answer is exact and depends on nothing but the documents: of a source that is read 2.5 times every document is read
twice, and those with the lowest hashes a third time, up to the tokens that are wanted.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..checks import InputError, counted
from ..planning.table import short
from .config import MixingConfig, SourceConfig

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
