"""The suite `lm`: bits per byte and perplexity of whole held-out documents, per source and per register."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from ..checks import ensure, near_name
from ..collectives import spread
from .bootstrap import ratio_stderr
from .held_out import HeldOutWindows, window_nats
from .held_out_text import HeldOutText
from .measures import Measure
from .scoring import can_score

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.no_grad()
def score_windows(model: "PreTrainedModel", windows: HeldOutWindows, batch_size: int) -> NDArray[np.float64]:
    """Return (windows, 2): summed nats and scored tokens of each window, whatever the batch size and number of ranks.

    Args:
        model: any causal language model.
        windows: of the held-out documents.
        batch_size: windows read at once; those of one batch have about the same length.
    """
    with tqdm(total=len(windows), desc="held-out text", unit=" windows", leave=False, disable=None) as bar:

        def score(places: list[int]) -> list[NDArray[np.float64]]:
            found = []
            for start in range(0, len(places), batch_size):
                items = [windows[place] for place in places[start : start + batch_size]]
                longest = max(len(item["input_ids"]) for item in items)
                # Padding stands behind the text, where causal attention never looks.
                tokens = torch.zeros(len(items), longest, dtype=torch.long)
                labels = torch.full((len(items), longest), -100)
                for row, item in enumerate(items):
                    tokens[row, : len(item["input_ids"])] = torch.from_numpy(item["input_ids"])
                    labels[row, : len(item["labels"])] = torch.from_numpy(item["labels"])
                nats = _batch_nats(model, tokens.to(model.device), labels.to(model.device))
                found += list(nats.cpu().double().numpy())
                bar.update(len(items))
            return found

        return np.array(spread(range(len(windows)), score, chunk=batch_size))


def _batch_nats(model: "PreTrainedModel", tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    if not can_score(model):
        return window_nats(model(input_ids=tokens, use_cache=False).logits, labels)
    body: Any = model.base_model
    head: Any = model.get_output_embeddings()
    hidden_BTH = body(input_ids=tokens, use_cache=False).last_hidden_state
    # Row by row, and only where a token is scored: all logits of a batch would take gigabytes.
    rows = []
    for hidden_TH, label_T in zip(hidden_BTH, labels, strict=True):
        scored_T = label_T[1:] != -100
        logits_NV = head(hidden_TH[:-1][scored_T]).float()
        nats = torch.nn.functional.cross_entropy(logits_NV, label_T[1:][scored_T], reduction="sum")
        rows.append(torch.stack([nats, scored_T.sum().to(nats.dtype)]))
    return torch.stack(rows)


def language_modeling_measures(
    model: "PreTrainedModel",
    text: HeldOutText,
    batch_size: int,
    context: int | None = None,
    stride: int | None = None,
    max_tokens: int | None = None,
    registers: dict[str, list[str]] | None = None,
) -> list[Measure]:
    """Return bits per byte and perplexity over all documents, per source and per register.

    Args:
        model: the model.
        text: held-out documents as its tokens.
        batch_size: windows read at once; it does not change a figure.
        context: tokens seen at once; default the model's context.
        stride: tokens between two windows; default half a context.
        max_tokens: whole documents of at most so many tokens, drawn with a fixed seed; default all.
        registers: for each register (a kind of text) the sources that belong to it.

    Raises:
        InputError: a context that the model does not have, or a register of unknown sources.
    """
    longest = int(model.config.max_position_embeddings)
    context = context or longest
    ensure(
        2 <= context <= longest,
        f"context={context}: the model reads at most {longest} tokens. Give 2 to {longest}, or leave it out.",
    )
    ensure(  # the first token of a window is predicted by the one before it, so windows share at least one
        stride is None or 1 <= stride < context,
        f"stride={stride}: must be 1 to {context - 1}. Half the context is usual.",
    )
    registers = registers or {}
    for register, names in registers.items():
        for name in names:
            ensure(
                name in text.source_names,
                f"registers.{register}={name}: no held-out document has this source."
                f"{near_name(name, text.source_names)} There are {', '.join(text.source_names[:8])}.",
            )
    windows = HeldOutWindows(text, context, stride, max_tokens)
    nats = score_windows(model, windows, batch_size)
    sums = np.zeros((len(text.documents), 2))
    np.add.at(sums, [window.document for window in windows.windows], nats)
    chosen = windows.document_ids
    source_of = text.documents["source"][chosen]
    parts: list[tuple[str | None, NDArray[np.bool_]]] = [(None, np.ones(len(chosen), dtype=bool))]
    parts += [(name, source_of == number) for number, name in enumerate(text.source_names)]
    for register, names in registers.items():
        places = [text.source_names.index(name) for name in names]
        parts.append((f"register: {register}", np.isin(source_of, places)))
    measures = []
    for part, mask in parts:
        if mask.any():
            measures += _measures(part, sums[chosen][mask], text.documents["num_bytes"][chosen][mask])
    return measures


def _measures(part: str | None, sums: NDArray[np.float64], num_bytes: NDArray[Any]) -> list[Measure]:
    nats, tokens, total = float(sums[:, 0].sum()), int(sums[:, 1].sum()), int(num_bytes.sum())
    per_token = nats / max(tokens, 1)
    per_token_stderr = ratio_stderr(sums[:, 0].tolist(), sums[:, 1].tolist()) if tokens else None
    bits_stderr = ratio_stderr((sums[:, 0] / math.log(2)).tolist(), num_bytes.tolist())
    perplexity = math.exp(min(per_token, 700.0))
    shared: dict[str, Any] = {"suite": "lm", "task": "held_out", "part": part, "num_items": len(sums)}
    return [
        Measure(metric="bits_per_byte", value=nats / math.log(2) / total, stderr=bits_stderr, **shared),
        # The error of an exponential, to first order.
        Measure(metric="perplexity", value=perplexity,
                stderr=None if per_token_stderr is None else perplexity * per_token_stderr, **shared),
    ]  # fmt: skip
