"""What we save is the same model and tokenizer to transformers 4.57, in an environment of its own; .ci/run makes it."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY, without_other_tool
from test_pretrain import make_values as pretrain_values
from test_pretrain import run as run_pretrain
from test_sft import conversations, foreign_tokenizer
from test_sft import run as run_sft
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from teenytinyllama.models import finish_saved, from_pretrained, load_tokenizer, merge_adapter
from teenytinyllama.tuning.base import SFT

pytestmark = [pytest.mark.other_tools, pytest.mark.timeout(600)]

TEXTS = ["Era uma vez um gato.", " dois  espaços\n", "ação ３ 東京", "<instruction>Olá</instruction>Oi</s>"]
IDS = [[5, 40, 7, 60, 21, 300, 9, 100] * 4]
READER = """
import json, sys, warnings
import torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
assert transformers.__version__.startswith("4.57."), transformers.__version__
asked, found = json.load(open(sys.argv[1])), {}
for folder in asked["folders"]:
    tokenizer = AutoTokenizer.from_pretrained(folder) if asked["tokenizers"][folder] else None
    if asked["adapters"][folder]:
        from peft import PeftConfig, PeftModel
        base = AutoModelForCausalLM.from_pretrained(PeftConfig.from_pretrained(folder).base_model_name_or_path)
        model = PeftModel.from_pretrained(base, folder).merge_and_unload()
    else:
        model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        logits = model.float().eval()(torch.tensor(asked["ids"])).logits
    found[folder] = {"logits": logits[0].tolist(), "end": model.generation_config.eos_token_id}
    if tokenizer is not None:
        turns = [{"role": "user", "content": "Quem?"}]
        found[folder] |= {
            "ids": [tokenizer(text)["input_ids"] for text in asked["texts"]],
            "decoded": tokenizer.batch_decode([tokenizer(text, add_special_tokens=False)["input_ids"] for text in asked["texts"]]),
            "chat": tokenizer.apply_chat_template(turns, add_generation_prompt=True) if tokenizer.chat_template else None,
            "special": sorted(tokenizer.all_special_tokens),
        }
assert not any(name.startswith("teenytinyllama") for name in sys.modules)
json.dump(found, open(sys.argv[2], "w"))
"""
SIZES = {
    "vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}"
    "{{ eos_token }}{% endgeneration %}{% else %}{{ message['content'] }}: {% endif %}{% endfor %}"
)
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
PLAIN = {"rope_type": "default", "rope_theta": 500_000.0}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"rope_parameters": PLAIN},
    "llama3": {"model_type": "llama", "rope_parameters": LLAMA3},
    "yarn": {"model_type": "llama", "rope_parameters": {"rope_type": "yarn", "rope_theta": 500_000.0, "factor": 4.0,
                                                        "original_max_position_embeddings": 64}},
    "mistral": {"rope_parameters": {**PLAIN, "rope_theta": 1e6}, "sliding_window": 16},
    "qwen2": {"rope_parameters": {**PLAIN, "rope_theta": 1e6}},
    "qwen3": {"rope_parameters": {**PLAIN, "rope_theta": 1e6}, "head_dim": 8},
    "phi": {"rope_parameters": {**PLAIN, "partial_rotary_factor": 0.5}},
    "gemma3_text": {"head_dim": 8, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"],
                    "rope_parameters": {"full_attention": {**PLAIN, "rope_theta": 3e6},
                                        "sliding_attention": {**PLAIN, "rope_theta": 2e4}}},
}  # fmt: skip


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """What transformers 4 reads from folders."""
    python = Path(os.environ.get("TTL_TRANSFORMERS4", REPOSITORY / ".venv-transformers4" / "bin" / "python"))
    if not python.is_file():
        without_other_tool(f"there is no environment with transformers 4.57 ({python}); .ci/run makes one")
    place = tmp_path_factory.mktemp("read")

    def call(*folders: Path) -> dict[str, Any]:
        asked = {
            "folders": [str(folder) for folder in folders], "texts": TEXTS, "ids": IDS,
            "tokenizers": {str(folder): (folder / "tokenizer.json").is_file() for folder in folders},
            "adapters": {str(folder): not (folder / "config.json").is_file() for folder in folders},
        }  # fmt: skip
        (place / "asked.json").write_text(json.dumps(asked))
        command = [str(python), "-c", READER, str(place / "asked.json"), str(place / "found.json")]
        clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(command, capture_output=True, text=True, cwd=place, env=clean, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return dict(json.loads((place / "found.json").read_text()))

    return call


def ours(folder: Path) -> dict[str, Any]:
    """The same by this package."""
    model, tokenizer = from_pretrained(folder)
    turns = [{"role": "user", "content": "Quem?"}]
    with torch.no_grad():
        logits = model.float()(torch.tensor(IDS)).logits
    return {
        "logits": logits[0].tolist(),
        "end": model.generation_config.eos_token_id,
        "ids": [tokenizer(text)["input_ids"] for text in TEXTS],
        "decoded": tokenizer.batch_decode([tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]),
        "chat": list(tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"])
        if tokenizer.chat_template
        else None,
        "special": sorted(tokenizer.all_special_tokens),
    }


def assert_alike(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert torch.allclose(torch.tensor(found["logits"]), torch.tensor(expected["logits"]), atol=1e-5)
    assert {name: value for name, value in found.items() if name != "logits"} == {
        name: value for name, value in expected.items() if name != "logits"
    }


def save_foreign(folder: Path, kind: str) -> Path:
    """A model of another family as its makers might have saved it, its weights large enough to tell positions apart."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(**{**SIZES, "model_type": kind, **CONFIGS[kind]})
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                parameter.normal_(std=0.5)
    model.save_pretrained(folder)
    return folder


def test_rotary_positions_of_each_family(read: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    folders = [save_foreign(tmp_path / kind, kind) for kind in CONFIGS]
    for folder in folders:
        finish_saved(folder)
    for folder, found in zip(folders, read(*folders).values(), strict=True):
        config = AutoConfig.from_pretrained(folder)
        kind = CONFIGS[folder.name]
        assert {name: config.rope_parameters[name] for name in kind["rope_parameters"]} == kind["rope_parameters"]
        with torch.no_grad():
            logits = AutoModelForCausalLM.from_pretrained(folder)(torch.tensor(IDS)).logits[0]
        assert torch.allclose(torch.tensor(found["logits"]), logits, atol=1e-5), folder.name


def test_without_the_older_names_it_would_be_another_model(read: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    folder = save_foreign(tmp_path / "llama", "llama")
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(folder)(torch.tensor(IDS)).logits[0]
    assert not torch.allclose(torch.tensor(read(folder)[str(folder)]["logits"]), logits, atol=1e-3)


def test_a_pretrained_model_its_checkpoint_and_one_continued(
    read: Callable[..., dict[str, Any]], tmp_path: Path, packed_folder: Path, tokenizer_folder: Path
) -> None:
    first = run_pretrain(pretrain_values(tmp_path, packed_folder, tokenizer_folder))
    foreign = save_foreign(tmp_path / "llama3", "llama3")
    load_tokenizer("x", str(tokenizer_folder)).save_pretrained(foreign)
    model = AutoModelForCausalLM.from_pretrained(foreign)
    model.resize_token_embeddings(600)
    model.save_pretrained(foreign)
    values = pretrain_values(tmp_path / "more", packed_folder, tokenizer_folder)
    values = {name: value for name, value in values.items() if name not in ("preset", "shape")}
    continued = run_pretrain({**values, "model_name_or_path": str(foreign)})
    folders = [first, first / "checkpoint-4", continued, continued / "checkpoint-4"]
    found = read(*folders)
    for folder in folders:
        assert (folder / "tokenizer.model").is_file()
        assert_alike(found[str(folder)], ours(folder))
    assert json.loads((continued / "config.json").read_text())["rope_theta"] == 500_000.0


@pytest.mark.parametrize("kind", ["llama3", "qwen2"])
def test_a_tuned_foreign_model_its_adapter_and_the_two_merged(
    kind: str, read: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    base = save_foreign(tmp_path / "base", kind)
    knows = save_foreign(tmp_path / "knows", "llama3")  # with a template of its own: no token has to be added
    tokenizer = foreign_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(knows)
    finish_saved(knows)  # an adapter alone cannot mend its base
    tokenizer = foreign_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|fim_prefix|>"]})
    tokenizer.save_pretrained(base)
    rows = tmp_path / "onde.jsonl"
    rows.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in conversations()), encoding="utf-8")
    common = {
        "model_name_or_path": str(base), "inputs": [str(rows)], "max_steps": 2, "tokens_per_step": 256,
        "check_first_loss": False, "final_answers": 0, "eval_strategy": "no", "save_steps": 2, "sample_new_tokens": 4,
    }  # fmt: skip
    whole = run_sft(SFT.prepare_inputs({**common, "output_dir": str(tmp_path / "whole")}))
    merged = run_sft(SFT.prepare_inputs({**common, "output_dir": str(tmp_path / "merged"), "lora_r": 2}))
    alone = run_sft(SFT.prepare_inputs({**common, "output_dir": str(tmp_path / "alone"), "lora_r": 2, "merge": False}))
    few = {**common, "model_name_or_path": str(knows), "lora_r": 2, "merge": False}
    adapter = run_sft(SFT.prepare_inputs({**few, "output_dir": str(tmp_path / "adapter")}))
    again = merge_adapter(str(alone), tmp_path / "again")
    folders = [whole, whole / "checkpoint-2", merged, again, adapter]
    found = read(*folders)
    for folder in folders:
        assert_alike(found[str(folder)], ours(folder))
        assert not (folder / "tokenizer.model").exists(), "a foreign tokenizer has none of ours"
    assert "<instruction>" in found[str(whole)]["special"]


def test_a_tokenizer_saved_again_is_known(
    read: Callable[..., dict[str, Any]], tmp_path: Path, tokenizer_folder: Path
) -> None:
    folder = save_foreign(tmp_path / "llama", "llama")
    AutoTokenizer.from_pretrained(tokenizer_folder).save_pretrained(folder)
    finish_saved(folder)
    model, tokenizer = from_pretrained(folder)
    again = tmp_path / "again"
    model.save_pretrained(again)
    tokenizer.save_pretrained(again)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    found = read(folder, again)
    assert found[str(again)]["ids"] == found[str(folder)]["ids"] == ours(folder)["ids"]
