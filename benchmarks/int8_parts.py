"""Which parts of a model may be 8 bits: MB, bits per byte, logits and greedy text with layers, head and embeddings.

Usage, with torchao installed:
    python benchmarks/int8_parts.py MODEL PACKED --max_tokens 40000
    python benchmarks/int8_parts.py 160m          # random weights of a preset: sizes alone
The last row stands for embeddings in 8 bits too: their values are rounded so, but stored as bfloat16, because
transformers 5.23 quantises no embeddings.
"""

import argparse
import copy
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torchao.quantization import Int8WeightOnlyConfig
from transformers import LlamaForCausalLM, TorchAoConfig

from teenytinyllama.checks import run_main
from teenytinyllama.evaluation.held_out import HeldOutWindows, load_held_out, score_windows
from teenytinyllama.models import from_pretrained
from teenytinyllama.presets import PRESETS, preset_config


def in_int8(model: Any, **settings: Any) -> Any:
    """Return a copy with linear layers in 8 bits."""
    return type(model).from_pretrained(
        None, config=copy.deepcopy(model.config), state_dict=model.state_dict(), dtype=torch.bfloat16,
        quantization_config=TorchAoConfig(Int8WeightOnlyConfig(), **settings),
    ).eval()  # fmt: skip


def round_embeddings(model: Any) -> Any:
    """Round each row of the embeddings to 255 levels, in place."""
    weight = model.get_input_embeddings().weight.data
    scale = weight.float().abs().amax(1, keepdim=True) / 127
    weight.copy_((weight.float() / scale).round() * scale)
    return model


def forms(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield each form of a model in float32."""
    yield "float32", model
    yield "float16", copy.deepcopy(model).half()
    yield "bfloat16", copy.deepcopy(model).bfloat16()
    yield "int8: layers", in_int8(model)
    if not model.config.tie_word_embeddings:
        yield "int8: layers, head", in_int8(model, modules_to_not_convert=["model.embed_tokens"])
        head_too = in_int8(model, modules_to_not_convert=["model.embed_tokens"])
        yield "int8: layers, head, embeddings", round_embeddings(head_too)


def stored_mb(model: Any) -> float:
    """Return the megabytes of a saved model's weights."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return sum(path.stat().st_size for path in Path(folder).glob("*.safetensors")) / 1e6


def greedy(model: Any, ids: torch.Tensor) -> list[int]:
    """Return the 60 likeliest tokens behind a prompt of (1, tokens)."""
    settings = {"max_new_tokens": 60, "min_new_tokens": 60, "do_sample": False, "use_cache": True}
    return model.generate(ids, **settings)[0, ids.shape[1] :].tolist()


@torch.no_grad()
def main() -> None:
    """Print a row for each form."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("packed", nargs="?")
    parser.add_argument("--max_tokens", type=int, default=40_000)
    words = parser.parse_args()
    if words.packed is None:
        torch.manual_seed(0)
        shape = preset_config(words.model) if words.model in PRESETS else from_pretrained(words.model)[0].config
        for name, form in forms(LlamaForCausalLM(shape)):
            print(f"{name:32s} {stored_mb(form):8.2f} MB", flush=True)
        return
    model, tokenizer = from_pretrained(words.model)
    text = load_held_out([words.packed], tokenizer)
    windows = HeldOutWindows(text, model.config.max_position_embeddings, max_tokens=words.max_tokens)
    ids = torch.tensor([text.validation[:64].tolist()])
    expected, written = model.float()(ids).logits, greedy(model.float(), ids[:, :16])
    for name, form in forms(model.float()):
        found = windows.summarise(score_windows(form, windows, 8))
        same = [one == other for one, other in zip(greedy(form, ids[:, :16]), written, strict=True)]
        errors, spread = form(ids).logits.float() - expected, expected.std()
        print(
            f"{name:32s} {stored_mb(form):8.2f} MB, {found['bits_per_byte']:.5f} bits per byte, logits: error "
            f"{errors.square().mean().sqrt():.4f} (largest {errors.abs().max():.3f}) of a spread of {spread:.2f}, "
            f"greedy text equal for {[*same, False].index(False)} of {len(same)} tokens",
            flush=True,
        )


if __name__ == "__main__":
    run_main(main)
