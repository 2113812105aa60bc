"""The presets: exact counts, the plain Llama configuration, and its refusals."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from teenytinyllama.checks import InputError
from teenytinyllama.presets import PRESETS, count_parameters, flops_per_token, matrix_flops_per_token, preset_config


def _tokenizer(num_entries: int, **special: str):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    names = ["<unk>", "<s>", "</s>", "<pad>"] + [f"p{number}" for number in range(num_entries - 4)]
    core = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", **special)


SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


@pytest.mark.parametrize(
    ("name", "num_parameters"), [("160m", 162_417_408), ("460m", 468_239_360), ("1b1", 1_100_048_384)]
)
def test_published_parameter_counts(name, num_parameters):
    assert PRESETS[name].num_parameters == num_parameters


@pytest.mark.parametrize("name", PRESETS)
def test_arithmetic_count_equals_the_model(name):
    import torch
    from transformers import AutoModelForCausalLM

    config = preset_config(name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert model.num_parameters() == count_parameters(config) == PRESETS[name].num_parameters
    assert config.num_attention_heads % config.num_key_value_heads == 0


@pytest.mark.parametrize("changes", [{"tie_word_embeddings": True}, {"head_dim": 24}, {"num_key_value_heads": 1}])
def test_count_follows_tied_embeddings_head_size_and_key_value_heads(changes):
    import torch
    from transformers import AutoModelForCausalLM

    config = preset_config("tiny")
    for field, value in changes.items():
        setattr(config, field, value)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert model.num_parameters() == count_parameters(config)


@pytest.mark.parametrize(("name", "billions"), [("160m", 1.201), ("460m", 3.413)])
def test_flops_per_token_by_convention_a(name, billions):
    assert flops_per_token(PRESETS[name], 2048) / 1e9 == pytest.approx(billions, abs=5e-4)
    assert flops_per_token(preset_config(name)) == flops_per_token(PRESETS[name], 2048)


@pytest.mark.parametrize(
    ("name", "by_hand"),
    [
        # A layer has four projections and three MLP matrices; then the head, and attention over 2,048 tokens.
        ("160m", 6 * (12 * (4 * 768 * 768 + 3 * 768 * 3072) + 32_000 * 768) + 12 * 12 * 768 * 2048),
        ("460m", 6 * (24 * (4 * 1024 * 1024 + 3 * 1024 * 4096) + 32_000 * 1024) + 12 * 24 * 1024 * 2048),
    ],
)
def test_flops_of_matrix_products_by_hand(name, by_hand):
    assert matrix_flops_per_token(PRESETS[name], 2048) == by_hand
    assert by_hand == {"160m": 1_053_425_664, "460m": 3_216_506_880}[name]
    assert matrix_flops_per_token(preset_config(name)) == by_hand


def test_the_weights_of_matrix_products_are_those_of_the_model_s_linear_layers():
    import torch
    from transformers import AutoModelForCausalLM

    for tied in (False, True):
        config = preset_config("tiny")
        config.tie_word_embeddings = tied
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        linear = (module for module in model.modules() if isinstance(module, torch.nn.Linear))
        attention = 12 * config.num_hidden_layers * config.hidden_size * 64
        assert matrix_flops_per_token(config, 64) == 6 * sum(module.weight.numel() for module in linear) + attention


@pytest.mark.parametrize("count", [flops_per_token, matrix_flops_per_token])
def test_flops_refuses_an_empty_context(count):
    with pytest.raises(InputError, match=r"context=0: must be at least 1 token. Use 2048"):
        count(PRESETS["160m"], 0)


def test_defaults_without_a_tokenizer():
    config = preset_config("160m")
    assert (config.vocab_size, config.bos_token_id, config.eos_token_id, config.pad_token_id) == (32_000, 1, 2, 3)
    assert config.max_position_embeddings == 2048
    assert config.rope_parameters["rope_theta"] == 10_000.0
    assert config.rms_norm_eps == 1e-5
    assert preset_config("tiny").vocab_size == PRESETS["tiny"].vocab_size


def test_size_and_ids_come_from_the_tokenizer():
    config = preset_config("160m", _tokenizer(300, bos_token="<s>", eos_token="p0", pad_token="<pad>"))
    assert (config.vocab_size, config.bos_token_id, config.eos_token_id, config.pad_token_id) == (300, 1, 4, 3)


def test_refuses_a_tokenizer_without_its_special_tokens():
    with pytest.raises(InputError, match=r"has no bos_token, pad_token\. .*must be set; `ttl tokenizer`"):
        preset_config("tiny", _tokenizer(20, eos_token="</s>"))


def test_refuses_a_tokenizer_with_gaps_in_its_ids():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2, "<pad>": 9}, unk_token="<unk>"))
    with pytest.raises(InputError, match=r"largest id is 9, but there are only 4 entries"):
        preset_config("tiny", PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", **SPECIAL))


@pytest.mark.parametrize(("name", "near"), [("160M", " Did you mean '160m'"), ("enorme", "")])
def test_refuses_an_unknown_name(name, near):
    with pytest.raises(InputError, match=rf"preset={name}: must be one of tiny, 160m, 460m, 1b1\.{near}"):
        preset_config(name)


@pytest.mark.slow
def test_saved_config_is_a_plain_llama_for_a_process_without_this_package(tmp_path: Path):
    preset_config("460m").save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert saved["model_type"] == "llama"
    assert "auto_map" not in saved
    reader = (
        "import sys; from transformers import AutoConfig; config = AutoConfig.from_pretrained(sys.argv[1]); "
        "assert not [name for name in sys.modules if name.startswith('teenytinyllama')]; print(config.to_json_string())"
    )
    # -I: no current folder and no PYTHONPATH, so the reader could not import this package if it tried.
    read = subprocess.run(
        [sys.executable, "-I", "-c", reader, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert json.loads(read.stdout) == json.loads(preset_config("460m").to_json_string())


def test_importing_presets_loads_neither_torch_nor_transformers():
    code = (
        "import sys, teenytinyllama.presets; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    root = Path(__file__).parents[1]
    read = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert read.stdout.strip() == "[]"
