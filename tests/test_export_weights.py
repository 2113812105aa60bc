"""Models as safetensors in other number formats and in 8 bits: what is written, what other programs read of it, and
what is refused. The parts that need torchao run in processes of their own; .ci/run installs it."""

import importlib.metadata
import importlib.util
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY, without_other_tool
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from teenytinyllama.chat.template import install_chat_template
from teenytinyllama.checks import InputError, MissingPackageError
from teenytinyllama.export.weights import DTYPES, check_int8, check_safetensors, write_safetensors
from teenytinyllama.models import finish_saved, from_pretrained, load_config, load_tokenizer
from teenytinyllama.presets import PRESETS
from teenytinyllama.quantised import ensure_readable, quantisation

IDS = torch.tensor([[1, 40, 7, 60, 21, 300, 9, 100] * 4])
TURNS = [{"role": "user", "content": "Quem vem?"}]
SIZES = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
}  # fmt: skip


def save_model(folder: Path, tokenizer_folder: Path, **more: Any) -> Path:
    """A chat model with random weights in float32, as a stage saves it."""
    tokenizer = load_tokenizer("tokenizer", str(tokenizer_folder))
    install_chat_template(tokenizer)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|ferramenta|>"]})
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{"vocab_size": len(tokenizer), **SIZES, **more}))
    model.generation_config = GenerationConfig(
        eos_token_id=[2, 261], bos_token_id=1, pad_token_id=3, temperature=0.7, do_sample=True
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    finish_saved(folder)
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    return save_model(tmp_path_factory.mktemp("source"), tokenizer_folder)


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    return save_model(tmp_path_factory.mktemp("tied"), tokenizer_folder, tie_word_embeddings=True)


def write(source: Path, folder: Path, dtype_name: str, size: str = "5GB") -> Path:
    model, tokenizer = from_pretrained(source)
    check_safetensors(model, str(source), dtype_name, size)
    folder.mkdir()
    write_safetensors(model, tokenizer, folder, dtype_name, size)
    return folder


def stored(folder: Path) -> dict[str, torch.Tensor]:
    """All weights in the files of a folder."""
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return found


def read_json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


# --- other number formats


@pytest.mark.parametrize("dtype_name", list(DTYPES))
def test_each_number_format(dtype_name: str, source: Path, tmp_path: Path) -> None:
    folder, dtype = write(source, tmp_path / "out", dtype_name), getattr(torch, DTYPES[dtype_name])
    before, after = stored(source), stored(folder)
    assert {name: values.dtype for name, values in after.items()} == dict.fromkeys(before, dtype)
    assert all(torch.equal(after[name], before[name].to(dtype)) for name in before)
    config = read_json(folder / "config.json")
    assert config["dtype"] == DTYPES[dtype_name]
    assert {**read_json(source / "config.json"), "dtype": config["dtype"]} == config
    assert AutoModelForCausalLM.from_pretrained(folder, dtype="auto").dtype == dtype
    for name in ("generation_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json"):
        assert (folder / name).read_bytes() == (source / name).read_bytes(), name
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.apply_chat_template(TURNS, tokenize=False, add_generation_prompt=True) == (
        "<s><instruction>Quem vem?</instruction>"
    )
    left = {path.name for path in folder.iterdir()} - {path.name for path in source.iterdir()}
    assert not left, "nothing else is written"


def test_the_model_stays_as_it_is(source: Path, tmp_path: Path) -> None:
    model, tokenizer = from_pretrained(source)
    write_safetensors(model, tokenizer, tmp_path, "bf16")
    assert model.dtype == torch.float32
    assert model.config.dtype in (torch.float32, "float32")


def test_shards_and_their_index(source: Path, tmp_path: Path) -> None:
    folder = write(source, tmp_path / "out", "bf16", "100KB")
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert len(files) > 1
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    assert not (folder / "model.safetensors").exists()
    assert sum(path.stat().st_size > 110_000 for path in folder.glob("*.safetensors")) == 0
    again, _ = from_pretrained(folder)
    whole, _ = from_pretrained(write(source, tmp_path / "whole", "bf16"))
    assert torch.equal(again(IDS).logits, whole(IDS).logits)


def test_tied_embeddings_are_written_once(tied: Path, tmp_path: Path) -> None:
    folder = write(tied, tmp_path / "out", "bf16")
    assert "lm_head.weight" not in stored(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_is_merged(dora: bool, source: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model, _ = from_pretrained(source)
    torch.manual_seed(1)
    config = LoraConfig(r=2, use_dora=dora, init_lora_weights=False, target_modules=["q_proj", "down_proj"])
    adapted = get_peft_model(model, config)
    adapted.peft_config["default"].base_model_name_or_path = str(source)
    adapted.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        expected = adapted(IDS).logits
    folder = write(tmp_path / "adapter", tmp_path / "out", "f32")
    assert not list(folder.glob("adapter*"))
    with torch.no_grad():
        assert torch.allclose(AutoModelForCausalLM.from_pretrained(folder)(IDS).logits, expected, atol=1e-5)
        assert not torch.allclose(from_pretrained(source)[0](IDS).logits, expected, atol=1e-3)


# --- what is refused


def test_float16_that_overflows(source: Path) -> None:
    model, _ = from_pretrained(source)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = -70_000.0
    expected = (
        r"type=f16: float16 holds numbers up to 65,504, and model\.layers\.1\.mlp\.up_proj\.weight of m has one of "
        r"size 70,000\. Use type=bf16"
    )
    with pytest.raises(InputError, match=expected):
        check_safetensors(model, "m", "f16", "5GB")
    check_safetensors(model, "m", "bf16", "5GB")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers(value: float, source: Path) -> None:
    model, _ = from_pretrained(source)
    with torch.no_grad():
        model.model.norm.weight[5] = value
    with pytest.raises(
        InputError, match=r"model_name_or_path=m: model\.norm\.weight holds values that are no finite numbers"
    ):
        check_safetensors(model, "m", "bf16", "5GB")


def test_unknown_formats_and_sizes(source: Path) -> None:
    model, _ = from_pretrained(source)
    with pytest.raises(InputError, match="type=q4_0: must be one of f32, bf16, f16 for safetensors"):
        check_safetensors(model, "m", "q4_0", "5GB")
    for size in ("", "2", "GB", "2GiB", "-2GB", "0GB", "2 G B", "1e3GB", "99KB"):
        with pytest.raises(InputError, match=rf"max_shard_size={size}: must be a number with KB, MB, GB or TB"):
            check_safetensors(model, "m", "bf16", size)
    for size in ("2GB", "1.5gb", " 500 MB ", "1TB", "100KB"):
        check_safetensors(model, "m", "bf16", size)


@pytest.fixture
def with_torchao(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], None]:
    """Pretend that torchao is installed in a version, or not at all."""

    def pretend(version: str | None) -> None:
        found, versions = importlib.util.find_spec, importlib.metadata.version
        spec = found("json") if version else None
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *more: spec if name == "torchao" else found(name, *more)
        )
        monkeypatch.setattr(
            importlib.metadata, "version", lambda name: str(version) if name == "torchao" else versions(name)
        )

    return pretend


def test_torchao_missing_or_old(source: Path, with_torchao: Callable[[str | None], None]) -> None:
    model, _ = from_pretrained(source)
    with_torchao(None)
    with pytest.raises(MissingPackageError, match=r"torchao: not installed.*pip install 'teenytinyllama\[int8\]'"):
        check_int8(model, "m")
    with_torchao("0.17.1+cpu")
    with pytest.raises(InputError, match=r"torchao 0\.17\.1\+cpu is too old to write 8 bits.*teenytinyllama\[int8\]"):
        check_int8(model, "m")
    with_torchao("0.18.0")
    check_int8(model, "m")
    model.lm_head.weight.data[0, 0] = float("nan")
    with pytest.raises(InputError, match="no finite numbers"):
        check_int8(model, "m")


def test_layers_that_torchao_does_not_quantise(with_torchao: Callable[[str | None], None]) -> None:
    with_torchao("0.18.0")
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=16))
    with pytest.raises(InputError, match=r"format=int8: torchao quantises linear layers, and m \(gpt2\) has none but"):
        check_int8(model, "m")
    check_safetensors(model, "m", "f16", "5GB")


TORCHAO_SETTINGS = {"quant_method": "torchao", "quant_type": {"default": {}}}


@pytest.mark.parametrize(
    ("settings", "method"),
    [
        ({"quantization_config": TORCHAO_SETTINGS}, "torchao"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "awq"),
        ({"compression_config": {"format": "pack-quantized"}}, "an unnamed method"),
    ],
)
def test_what_is_quantised_is_refused(
    settings: dict[str, Any], method: str, source: Path, with_torchao: Callable[[str | None], None]
) -> None:
    with_torchao("0.18.0")
    model, _ = from_pretrained(source)
    assert quantisation(model.config) is None
    assert quantisation(model.config.to_dict()) is None
    for name, value in settings.items():
        setattr(model.config, name, value)
    assert quantisation(model.config) == quantisation(settings) == method
    expected = rf"model_name_or_path=m: its weights are quantised already \(by {method}\).*Give the model that it was made from"
    for check in (lambda: check_int8(model, "m"), lambda: check_safetensors(model, "m", "bf16", "5GB")):
        with pytest.raises(InputError, match=expected):
            check()


def test_no_training_starts_from_quantised_weights(tmp_path: Path, source: Path) -> None:
    config = {**read_json(source / "config.json"), "quantization_config": {"quant_method": "gptq", "bits": 4}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"model_name_or_path=.*: its weights are quantised already \(by gptq\)"):
        load_config("model_name_or_path", str(tmp_path))


def test_reading_8_bits_without_torchao(
    tmp_path: Path, source: Path, with_torchao: Callable[[str | None], None]
) -> None:
    with_torchao(None)
    config = {**read_json(source / "config.json"), "quantization_config": TORCHAO_SETTINGS}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    with pytest.raises(MissingPackageError, match=r"torchao: not installed.*teenytinyllama\[int8\]"):
        from_pretrained(tmp_path)
    ensure_readable({})
    ensure_readable({"quantization_config": {"quant_method": "gptq"}})


def test_an_adapter_of_a_quantised_base_is_refused(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import LoraConfig, get_peft_model

    from teenytinyllama import models

    model, tokenizer = from_pretrained(source)
    adapted = get_peft_model(from_pretrained(source)[0], LoraConfig(r=2, target_modules=["q_proj"]))
    adapted.peft_config["default"].base_model_name_or_path = str(source)
    adapted.save_pretrained(tmp_path)
    model.config.quantization_config = TORCHAO_SETTINGS
    read = models.from_pretrained
    monkeypatch.setattr(models, "from_pretrained", lambda name, *more: (model, tokenizer))
    with pytest.raises(InputError, match=r"its base model is .*: its weights are quantised already \(by torchao\)"):
        read(tmp_path)


# --- vLLM: what its source asks of a folder. Files and lines are those of vllm 0.33.0 (PyPI), below vllm/.

# The modules of model_executor/models/llama.py that hold weights; q, k, v and gate, up are joined (line 349).
VLLM_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def vllm_names(num_layers: int, is_tied: bool) -> set[str]:
    inner = [f"self_attn.{name}" for name in VLLM_LINEAR[:4]] + [f"mlp.{name}" for name in VLLM_LINEAR[4:]]
    inner += ["input_layernorm", "post_attention_layernorm"]
    names = {f"model.layers.{layer}.{name}.weight" for layer in range(num_layers) for name in inner}
    return names | {"model.embed_tokens.weight", "model.norm.weight"} | (set() if is_tied else {"lm_head.weight"})


@pytest.fixture(scope="module", params=["source", "tied"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as it would be served: bfloat16, in shards."""
    place = tmp_path_factory.mktemp("served") / "model"
    return write(request.getfixturevalue(request.param), place, "bf16", "100KB")


def test_vllm_knows_the_model(served: Path) -> None:
    config = read_json(served / "config.json")
    assert config["architectures"] == ["LlamaForCausalLM"]  # model_executor/models/registry.py:155
    assert config["model_type"] == "llama"  # transformers_utils/config.py:358, then AutoConfig
    assert config["hidden_act"] == "silu"  # models/llama.py:112, all else is refused
    assert "auto_map" not in config
    # models/llama.py:275 reads bias, qkv_bias and is_causal where they are; ours has none of them
    assert not {"bias", "qkv_bias", "is_causal", "layer_types", "logit_scale"} & set(config)
    assert not config["attention_bias"]
    assert not config["mlp_bias"]


def test_vllm_gets_the_sizes(served: Path) -> None:
    config = read_json(served / "config.json")
    # transformers_utils/model_arch_config_convertor.py:91: head_dim, else hidden_size over heads
    assert config["head_dim"] == config["hidden_size"] // config["num_attention_heads"]
    assert config["num_key_value_heads"] == 1  # models/llama.py:299; left out it would be the number of heads
    # convertor:374: the longest prompt. config/model.py:2572: a smaller model_max_length of the tokenizer would win.
    assert config["max_position_embeddings"] == 128
    assert read_json(served / "tokenizer_config.json")["model_max_length"] >= 128


def test_vllm_gets_the_rotary_positions(served: Path) -> None:
    # transformers_utils/config.py:668: an attribute rope_theta goes first. With transformers 4 in it (vLLM pull request
    # 42624) that one alone counts, and is 10,000 where the file does not have it.
    config = read_json(served / "config.json")
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 500_000.0
    assert config["rope_parameters"]["rope_type"] == "default"  # config/model.py:2606 asks for rope_type
    read = AutoConfig.from_pretrained(served)
    read.standardize_rope_params()
    assert read.rope_parameters["rope_theta"] == 500_000.0


def test_vllm_gets_the_number_format(served: Path) -> None:
    # convertor:201: config.dtype; config/model.py:2441: float32 is served in the GPU's preferred format, not in float32
    assert AutoConfig.from_pretrained(served).dtype in (torch.bfloat16, "bfloat16")
    assert {values.dtype for values in stored(served).values()} == {torch.bfloat16}


def test_vllm_gets_each_weight_once(served: Path) -> None:
    config, weights = read_json(served / "config.json"), stored(served)
    # models/llama.py:509 ties the head; models/utils.py:259 skips a second copy, so none is written
    assert set(weights) == vllm_names(config["num_hidden_layers"], config["tie_word_embeddings"])
    # model_loader/weight_utils.py:590: the index decides which files are read, and all of them must be there
    index = read_json(served / "model.safetensors.index.json")
    assert set(index["weight_map"]) == set(weights)
    assert set(index["weight_map"].values()) == {path.name for path in served.glob("*.safetensors")}
    # model_loader/default_loader.py:186: *.bin would be read, too
    assert not [path.name for path in served.iterdir() if path.suffix in (".bin", ".pt", ".pth")]


def test_vllm_gets_the_tokenizer(served: Path) -> None:
    from transformers import TokenizersBackend

    tokenizer_config = read_json(served / "tokenizer_config.json")
    assert tokenizer_config["tokenizer_class"] == "PreTrainedTokenizerFast"  # tokenizers/hf.py:9, AutoTokenizer
    assert "auto_map" not in tokenizer_config
    # with transformers 4, as older vLLM has it, a list of extra_special_tokens fails (ms-swift issue 8352)
    assert "extra_special_tokens" not in tokenizer_config
    assert "<|ferramenta|>" in tokenizer_config["additional_special_tokens"]
    tokenizer = AutoTokenizer.from_pretrained(served)
    assert isinstance(tokenizer, TokenizersBackend)
    # renderers/base.py:477: ids up to the larger of tokenizer and vocab_size pass, and are looked up in the embeddings
    assert max(tokenizer.get_vocab().values()) < read_json(served / "config.json")["vocab_size"]
    # entrypoints/openai/completion/protocol.py:118: a plain prompt gets the start token from the tokenizer
    assert tokenizer("a")["input_ids"][0] == 1


def test_vllm_gets_the_template_and_the_end(served: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(served)
    template = tokenizer.get_chat_template(None, tools=None)  # renderers/hf.py:336
    # entrypoints/openai/chat_completion/protocol.py:350: a chat gets no start token but the template's
    text = tokenizer.apply_chat_template(TURNS, tokenize=False, add_generation_prompt=True)
    assert text.startswith("<s>")
    # renderers/hf.py:580: contents stay strings unless the template goes through their parts
    assert "content in message" not in template
    assert "message.content %}" not in template
    # transformers_utils/config.py:1284 and sampling_params.py:790: these ids end an answer; temperature is the default
    generation = GenerationConfig.from_pretrained(served)
    assert generation.eos_token_id == [2, 261]
    assert generation.temperature == 0.7
    assert tokenizer.eos_token_id in generation.eos_token_id


def test_vllm_has_kernels_for_our_heads() -> None:
    # v1/attention/backends: flash_attn.py:425 multiples of 8 to 256, triton_attn.py:379 from 32,
    # flashinfer.py:691 and cpu_attn.py:78 these
    for preset in PRESETS.values():
        assert preset.hidden_size // preset.num_attention_heads in (64, 128)


# --- 8 bits, with torchao

# Written by this package: both kinds of models, and what vLLM does with the joined layers and would do with a head.
WRITER = """
import json, sys
from pathlib import Path
import torch
from torch.nn.functional import linear
from torchao.quantization import Int8WeightOnlyConfig, quantize_
from teenytinyllama.export.weights import check_int8, write_int8
from teenytinyllama.models import from_pretrained
asked = json.load(open(sys.argv[1]))
for source, folder in asked["folders"].items():
    model, tokenizer = from_pretrained(source)
    check_int8(model, source)
    Path(folder).mkdir()
    write_int8(model, tokenizer, Path(folder))
    assert model.dtype == torch.float32 and type(model.lm_head.weight.data) is torch.Tensor
    assert getattr(model.config, "quantization_config", None) is None
    again, _ = from_pretrained(folder)
    assert again.dtype == torch.bfloat16
def quantise(weight):  # vllm/model_executor/layers/quantization/torchao.py:278
    layer = torch.nn.Sequential(torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False))
    layer[0].weight = torch.nn.Parameter(weight, requires_grad=False)
    quantize_(layer, Int8WeightOnlyConfig())
    return layer[0].weight
attention = again.model.layers[0].self_attn
parts = [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
joined = quantise(torch.empty(sum(part.shape[0] for part in parts), parts[0].shape[1], dtype=torch.bfloat16))
start = 0
for part in parts:  # vllm/model_executor/layers/linear.py, QKVParallelLinear.weight_loader
    joined.data.narrow(0, start, part.shape[0]).copy_(part.data.narrow(0, 0, part.shape[0]))
    start += part.shape[0]
x = torch.randn(3, parts[0].shape[1], dtype=torch.bfloat16)
assert torch.equal(linear(x, joined), torch.cat([linear(x, part) for part in parts], -1))
try:  # vllm/model_executor/layers/vocab_parallel_embedding.py:519, if the head were quantised
    torch.empty(parts[0].shape, dtype=torch.bfloat16).copy_(parts[0].data)
except AttributeError as error:
    assert "tensor_data_names" in str(error)
else:
    raise AssertionError("vLLM could read a quantised head now: quantise it")
"""
READER = """
import json, sys
import torch, transformers
from transformers import AutoModelForCausalLM
asked, found = json.load(open(sys.argv[1])), {}
for folder in asked["folders"].values():
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    with torch.no_grad():
        logits = model(torch.tensor(asked["ids"])).logits.float()
    found[folder] = {
        "logits": logits.tolist(), "end": model.generation_config.eos_token_id, "dtype": str(model.dtype),
        "tied": model.lm_head.weight is model.model.embed_tokens.weight,
        "kinds": sorted({type(parameter.data).__name__ for parameter in model.parameters()}),
    }
assert not any(name.startswith("teenytinyllama") for name in sys.modules)
json.dump(found, open(sys.argv[2], "w"))
"""


def run_with_torchao(script: str, *words: str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    place = Path(os.environ.get("TTL_TORCHAO", REPOSITORY / ".torchao"))
    if not (place / "torchao").is_dir():
        without_other_tool(f"there is no torchao in {place}; `make other-tools` puts it there")
    environment = {**os.environ, "PYTHONPATH": str(place)}
    return subprocess.run(
        [python, "-c", script, *words], capture_output=True, text=True, env=environment, cwd=place, check=False
    )


@pytest.fixture(scope="module")
def eight_bits(tmp_path_factory: pytest.TempPathFactory, source: Path, tied: Path) -> tuple[Path, Path, Path]:
    """The two models in 8 bits, and the file that says where they are."""
    place = tmp_path_factory.mktemp("eight")
    folders = {str(source): str(place / "untied"), str(tied): str(place / "tied")}
    (place / "asked.json").write_text(json.dumps({"folders": folders, "ids": IDS.tolist()}))
    done = run_with_torchao(WRITER, str(place / "asked.json"))
    assert done.returncode == 0, done.stderr[-3000:]
    return place / "untied", place / "tied", place / "asked.json"


def python_of_transformers_4() -> str:
    python = Path(os.environ.get("TTL_TRANSFORMERS4", REPOSITORY / ".venv-transformers4" / "bin" / "python"))
    if not python.is_file():
        without_other_tool(f"there is no environment with transformers 4.57 ({python}); .ci/run makes one")
    return str(python)


@pytest.mark.other_tools
def test_transformers_4_reads_each_number_format(source: Path, tmp_path: Path) -> None:
    folders = {name: str(write(source, tmp_path / name, name, "200KB")) for name in DTYPES}
    (tmp_path / "asked.json").write_text(json.dumps({"folders": folders, "ids": IDS.tolist()}))
    command = [python_of_transformers_4(), "-c", READER, str(tmp_path / "asked.json"), str(tmp_path / "found.json")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for name, found in zip(DTYPES, read_json(tmp_path / "found.json").values(), strict=True):
        assert (found["dtype"], found["end"]) == (f"torch.{DTYPES[name]}", [2, 261])
        with torch.no_grad():
            expected = from_pretrained(folders[name])[0](IDS).logits.float()
        assert (torch.tensor(found["logits"]) - expected).abs().max() <= 0.02 * expected.std(), name


@pytest.mark.other_tools
def test_a_fresh_process_reads_8_bits(eight_bits: tuple[Path, Path, Path], source: Path, tied: Path) -> None:
    untied_folder, tied_folder, asked = eight_bits
    done = run_with_torchao(READER, str(asked), str(asked.with_name("found.json")))
    assert done.returncode == 0, done.stderr[-3000:]
    for before, after in ((source, untied_folder), (tied, tied_folder)):
        found = read_json(asked.with_name("found.json"))[str(after)]
        with torch.no_grad():
            expected = from_pretrained(before)[0](IDS).logits
        errors, spread = torch.tensor(found["logits"]) - expected, expected.std()
        assert errors.abs().max() < 0.1 * spread
        assert errors.square().mean().sqrt() < 0.02 * spread
        assert (found["end"], found["dtype"], found["tied"]) == ([2, 261], "torch.bfloat16", before == tied)
        assert found["kinds"] == ["Int8Tensor", "Tensor"]


@pytest.mark.other_tools
def test_torchao_is_silent_in_our_commands(eight_bits: tuple[Path, Path, Path]) -> None:
    script = (
        "import sys\nfrom teenytinyllama.checks import run_main\nfrom teenytinyllama.models import from_pretrained\n"
        "sys.exit(run_main(lambda: bool(from_pretrained(sys.argv[1])) - 1))"
    )
    done = run_with_torchao(script, str(eight_bits[0]))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "torchao" not in done.stderr
    assert "pytree" not in done.stderr


@pytest.mark.other_tools
def test_what_8_bits_hold(eight_bits: tuple[Path, Path, Path], source: Path, tied: Path) -> None:
    for before, folder in ((source, eight_bits[0]), (tied, eight_bits[1])):
        original, weights = stored(before), stored(folder)
        layers = [name for name in original if name.split(".")[-2] in VLLM_LINEAR]
        for name in layers:
            stem = name.removesuffix("weight") + "_weight_"
            integers, scale = weights.pop(f"{stem}qdata"), weights.pop(f"{stem}scale")
            assert (integers.dtype, scale.dtype) == (torch.int8, torch.float32)
            assert weights.pop(f"{stem}zero_point").count_nonzero() == 0
            assert (integers * scale - original[name]).abs().max() <= 0.51 * scale.max() + 0.005 * original[
                name
            ].abs().max()
        # The embeddings, the head and the norms, in bfloat16.
        assert set(weights) == set(original) - set(layers)
        assert all(torch.equal(values, original[name].bfloat16()) for name, values in weights.items())
        files = {path.name for path in folder.iterdir()}
        assert files == {path.name for path in before.iterdir()}, "no pickle, nothing left over"
        with pytest.raises(pickle.UnpicklingError):
            pickle.loads((folder / "model.safetensors").read_bytes())
        assert (folder / "tokenizer_config.json").read_bytes() == (before / "tokenizer_config.json").read_bytes()
        assert (folder / "generation_config.json").read_bytes() == (before / "generation_config.json").read_bytes()


@pytest.mark.other_tools
def test_what_vllm_and_transformers_read_of_8_bits(eight_bits: tuple[Path, Path, Path]) -> None:
    config = read_json(eight_bits[0] / "config.json")
    assert (config["dtype"], config["rope_theta"], config["architectures"]) == ("bfloat16", 5e5, ["LlamaForCausalLM"])
    settings = config["quantization_config"]
    # vllm: quantization/torchao.py:182 by quant_method, :188 one key "default", :244 LinearBase alone
    assert settings["quant_method"] == "torchao"
    assert list(settings["quant_type"]) == ["default"]
    assert (settings["quant_type"]["default"]["_type"], settings["quant_type"]["default"]["_version"]) == (
        "Int8WeightOnlyConfig", 2
    )  # fmt: skip
    assert settings["modules_to_not_convert"] is None
    # vllm: model_loader/weight_utils.py:1213 joins the parts by the metadata of the file
    with safe_open(eight_bits[0] / "model.safetensors", framework="pt") as file:
        assert set(json.loads(file.metadata()["tensor_names"])) == vllm_names(2, False)
    with pytest.raises(ImportError, match="torchao"):
        AutoModelForCausalLM.from_pretrained(eight_bits[0])  # here, without torchao


@pytest.mark.other_tools
def test_transformers_4_cannot_read_8_bits(eight_bits: tuple[Path, Path, Path]) -> None:
    done = run_with_torchao(READER, str(eight_bits[2]), "unused", python=python_of_transformers_4())
    assert done.returncode != 0, "docs/export.md says that transformers 4 does not read them"
    assert "_weight_qdata` is neither a parameter, buffer, nor extra state" in done.stderr
