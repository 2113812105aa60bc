"""One micro-batch of instruction tuning: what the mask of packed rows costs, and whose loss is faster.

    python benchmarks/tuning_step.py --rows 4 --context 512 --repeats 5

A  the layers alone, causal, without a mask
B  the layers alone, with the mask that keeps packed conversations apart
C  B with TRL's fused head: log probability, entropy and top-1 of each learnt token
D  B with the chunked loss of `training.speed`, which `ttl sft` uses

Forward and backward of a Llama of 6 layers x 256 and 32,000 entries on random tokens, four conversations a row, all
but a tenth of the tokens learnt. The four take turns, so that a busy machine slows all of them.
"""

from typing import Any

import numpy as np
import torch
from common import interleave, median, parser, seconds_of, write_results
from transformers import LlamaConfig, LlamaForCausalLM
from trl.trainer.utils import add_fused_lm_head

from teenytinyllama.training.speed import fuse_loss
from teenytinyllama.tuning.rows import RowCollator

VOCAB_SIZE, TEXTS_A_ROW, NOT_LEARNT = 32_000, 4, 0.1


def make_batch(rows: int, context: int) -> dict[str, torch.Tensor]:
    """Return a batch of packed rows of random tokens."""
    generator = np.random.default_rng(0)
    lengths = [context // TEXTS_A_ROW] * TEXTS_A_ROW
    made = []
    for _ in range(rows):
        ids = generator.integers(4, VOCAB_SIZE, sum(lengths))
        labels = np.where(generator.random(len(ids)) < NOT_LEARNT, -100, ids)
        made.append({"input_ids": ids, "labels": labels, "seq_lengths": lengths})
    return RowCollator(3)(made)


def make_model() -> Any:
    """Return the model, always with the same weights."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=VOCAB_SIZE, hidden_size=256, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=4,
    )).train()  # fmt: skip


def main() -> None:
    """Time the four and print a table."""
    arguments = parser(__doc__)
    arguments.add_argument("--rows", type=int, default=4)
    arguments.add_argument("--context", type=int, default=512)
    options = arguments.parse_args()
    batch = make_batch(options.rows, options.context)
    bare, fused, chunked = make_model(), make_model(), make_model()
    add_fused_lm_head(fused, outputs=("log_probs", "entropy", "is_top1"))
    fuse_loss(chunked, "chunked")
    losses: dict[str, float] = {}

    def layers(masked: bool) -> None:
        positions = {"position_ids": batch["position_ids"]} if masked else {}
        bare.model(batch["input_ids"], use_cache=False, **positions).last_hidden_state.sum().backward()

    def by_trl() -> None:
        output = fused(**batch, use_cache=False, fused_lm_head=True)
        loss = -output.log_probs.sum() / output.label_mask.sum()
        losses["C"] = loss.item()
        loss.backward()

    def by_chunks() -> None:
        loss = chunked(**batch).loss
        losses["D"] = loss.item()
        loss.backward()

    cases = {
        "A layers, no mask": lambda: seconds_of(lambda: layers(False)),
        "B layers, packed": lambda: seconds_of(lambda: layers(True)),
        "C B + TRL's head": lambda: seconds_of(by_trl),
        "D B + chunked loss": lambda: seconds_of(by_chunks),
    }
    interleave(cases, 1)  # warms up
    medians = {name: median(found) for name, found in interleave(cases, options.repeats).items()}
    tokens, ours = options.rows * options.context, medians["D B + chunked loss"]
    print(f"{tokens:,} tokens, {options.repeats} repeats, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{'':20} {'seconds':>8} {'tokens/s':>9} {'of D':>6}")
    for name, seconds in medians.items():
        print(f"{name:20} {seconds:8.2f} {tokens / seconds:9,.0f} {seconds / ours:6.2f}")
    print(f"losses: {losses['C']:.5f} and {losses['D']:.5f}")
    write_results(options.json, {"seconds": medians, "losses": losses})


if __name__ == "__main__":
    main()
