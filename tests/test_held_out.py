import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from teenytinyllama.data.packed import load_packed
from teenytinyllama.evaluation.held_out import HeldOutWindows, make_windows, window_nats
from teenytinyllama.training.pretrain import CausalCollator, TrainingRows


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=600, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                         num_attention_heads=2, max_position_embeddings=64)  # fmt: skip
    return LlamaForCausalLM(config).eval()


def score(model: LlamaForCausalLM, windows: HeldOutWindows, batch_size: int) -> dict:
    collate = CausalCollator(3)
    parts = []
    for start in range(0, len(windows), batch_size):
        batch = collate([windows[i] for i in range(start, min(start + batch_size, len(windows)))])
        with torch.no_grad():
            parts.append(window_nats(model(input_ids=batch["input_ids"]).logits, batch["labels"]).numpy())
    return windows.summarise(np.concatenate(parts))


def test_windows_of_the_picture() -> None:
    windows = make_windows(offset=100, num_tokens=10, document=0, context=6, stride=3)
    spans = [(w.start - 100, w.end - 100, w.first_scored - 100) for w in windows]
    assert spans == [(0, 6, 1), (3, 9, 6)]


@pytest.mark.parametrize(("context", "stride"), [(8, 8), (8, 4), (16, 1), (64, 32)])
@pytest.mark.parametrize("num_tokens", [2, 3, 8, 9, 10, 57, 64, 65])
def test_every_text_token_is_scored_once_with_enough_context(context: int, stride: int, num_tokens: int) -> None:
    windows = make_windows(0, num_tokens, 0, context, stride)
    scored = [place for w in windows for place in range(w.first_scored, w.end)]
    assert scored == list(range(1, num_tokens - 1))  # neither the start token nor the end token
    for window in windows:
        assert window.end - window.start <= context
        assert window.start == 0 or window.first_scored - window.start >= context - stride


def test_bits_per_byte_equals_a_hand_computation(model: LlamaForCausalLM, packed_folder: Path) -> None:
    packed = load_packed(packed_folder)
    nats = tokens = 0.0
    for row in packed.documents:
        ids = torch.tensor(packed.validation[row["offset"] : row["offset"] + row["num_tokens"]].astype(np.int64))
        for place in range(1, len(ids) - 1):
            # Windows of 64 that move on by 32: which tokens does the model see before this one?
            first = 0 if place < 64 else 32 * math.ceil((place - 63) / 32)
            if place % 16 == 0:  # every token is slow; the sums below compare these only
                logits = model(input_ids=ids[None, first:place]).logits[0, -1]
                nats += -torch.log_softmax(logits.double(), -1)[ids[place]].item()
                tokens += 1
    windows = HeldOutWindows(packed, context=64)
    mine = 0.0
    for index, window in enumerate(windows.windows):
        item = windows[index]
        offset = int(packed.documents["offset"][window.document])
        labels = item["labels"].copy()
        for place in range(len(labels)):
            if (window.start + place - offset) % 16:
                labels[place] = -100
        with torch.no_grad():
            logits = model(input_ids=torch.tensor(item["input_ids"])[None]).logits
        mine += float(window_nats(logits, torch.tensor(labels)[None])[0, 0])
    assert mine == pytest.approx(nats, rel=1e-5)
    result = score(model, windows, 4)
    total_bytes = int(packed.documents["num_bytes"].sum())
    assert result["scored_bytes"] == total_bytes
    assert result["scored_tokens"] == int((packed.documents["num_tokens"] - 2).sum())
    assert result["bits_per_byte"] == pytest.approx(
        result["nats_per_token"] * result["scored_tokens"] / math.log(2) / total_bytes
    )
    assert result["perplexity"] == pytest.approx(math.exp(result["nats_per_token"]))
    assert result["nats_per_token"] == pytest.approx(math.log(600), rel=0.05)  # a random model knows nothing


def test_batch_size_does_not_move_the_score_and_sources_add_up(model: LlamaForCausalLM, packed_folder: Path) -> None:
    windows = HeldOutWindows(load_packed(packed_folder), context=32)
    one, many = score(model, windows, 1), score(model, windows, 7)
    assert one["bits_per_byte"] == pytest.approx(many["bits_per_byte"], rel=1e-5)
    parts = one["per_source"].values()
    assert set(one["per_source"]) == {"contos", "curtas"}
    for name in ("documents", "scored_tokens", "scored_bytes"):
        assert sum(part[name] for part in parts) == one[name]
    weighted = sum(part["bits_per_byte"] * part["scored_bytes"] for part in parts) / one["scored_bytes"]
    assert weighted == pytest.approx(one["bits_per_byte"])


def test_a_limit_takes_whole_documents_and_the_same_ones(packed_folder: Path) -> None:
    packed = load_packed(packed_folder)
    first, second = (HeldOutWindows(packed, 32, max_tokens=1000) for _ in range(2))
    assert first.windows == second.windows
    assert 0 < packed.documents["num_tokens"][first.document_ids].sum() <= 1000
    assert len(first.document_ids) < len(packed.documents)
    one_short = HeldOutWindows(packed, 32, max_tokens=1).document_ids
    assert one_short.tolist() == [int(packed.documents["num_tokens"].argmin())]


def test_a_lost_window_is_noticed(packed_folder: Path) -> None:
    windows = HeldOutWindows(load_packed(packed_folder), 32)
    with pytest.raises(AssertionError, match="dropped or scored twice"):
        windows.summarise(np.zeros((len(windows) - 1, 2)))


def test_training_rows_go_round_in_new_orders() -> None:
    rows = np.arange(40, dtype=np.uint16).reshape(10, 4)
    dataset = TrainingRows(rows, 25, seed=1)
    assert len(dataset) == 25
    seen = [int(dataset[i]["input_ids"][0]) // 4 for i in range(25)]
    assert seen[:10] == list(range(10))
    assert sorted(seen[10:20]) == list(range(10))
    assert seen[10:20] != seen[:10]
    assert seen[20:] != seen[10:15]
    assert [int(TrainingRows(rows, 25, 1)[i]["input_ids"][0]) // 4 for i in (24, 3, 11)] == [
        seen[24],
        seen[3],
        seen[11],
    ]


def test_collator_makes_labels_and_pads_without_scoring() -> None:
    batch = CausalCollator(3)(
        [{"input_ids": np.array([5, 6, 7])}, {"input_ids": np.array([8]), "labels": np.array([-100])}]
    )
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 3, 3]]
    assert batch["labels"].tolist() == [[5, 6, 7], [-100, -100, -100]]
    assert set(batch) == {"input_ids", "labels"}
