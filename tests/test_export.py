"""GGUF files of our models, read by the programs that people use: llama.cpp, the `gguf` package, transformers."""

import importlib.util
import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import other_tool
from hub_server import HubServer
from test_chat import ANSWER, QUESTION, TURN, chat_folder, tiny_model  # noqa: F401
from test_publish_hub import publish, remote_names, server  # noqa: F401
from test_superwords import TEXTS, nasty_texts
from test_superwords import tokenizer as superword_tokenizer  # noqa: F401
from test_tokenizer import NASTY, hard_strings, vocabulary_of
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers import PreTrainedTokenizerFast as GenericTokenizer

from teenytinyllama import cli
from teenytinyllama.chat.template import TEMPLATE_PATH, install_chat_template
from teenytinyllama.checks import InputError, RunFailedError
from teenytinyllama.export import gguf_file
from teenytinyllama.export.export import ExportConfig, _ensure_same, run_export
from teenytinyllama.export.export_card import ollama_files
from teenytinyllama.export.gguf_file import portable_template, read_vocabulary
from teenytinyllama.models import finish_saved, from_pretrained, load_tokenizer
from teenytinyllama.stage_folder import sha256_file
from teenytinyllama.tokenizer.encode import encode_texts

pytest.importorskip("gguf")
needs_llama_cpp = pytest.mark.other_tools


def save_model(folder: Path, tokenizer: Any, **shape: Any) -> Path:
    """A model of random weights, large enough that logits differ, and its tokenizer."""
    torch.manual_seed(1)
    sizes = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 128, "rope_theta": 50_000.0, **shape,
    }  # fmt: skip
    config = LlamaConfig(
        **{"vocab_size": len(tokenizer), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3, **sizes}
    )
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    finish_saved(folder)
    return folder


@pytest.fixture
def tokenizer(tokenizer_folder: Path) -> Any:
    return load_tokenizer("tokenizer", str(tokenizer_folder))


def export(model: Path, output: Path, **more: Any) -> Path:
    return run_export(ExportConfig(model_name_or_path=str(model), output_dir=str(output), **{"measure": False, **more}))


def opened(path: Path, **more: Any) -> Any:
    llama_cpp = other_tool("llama_cpp")
    return llama_cpp.Llama(str(path), n_ctx=0, n_threads=1, n_threads_batch=1, verbose=False, **more)


# --- what every reader reads


def test_readers_of_gguf_find_the_model(tokenizer: Any, tmp_path: Path) -> None:
    """The package `gguf` reads shape and vocabulary; transformers reads the same weights and logits."""
    import gguf

    install_chat_template(tokenizer)
    model = save_model(tmp_path / "lhama", tokenizer)
    folder = export(model, tmp_path / "out", type="f16", name="lhama", license="mit")
    fields = gguf.GGUFReader(str(folder / "lhama-F16.gguf")).fields
    read = {
        name: field.contents() for name, field in fields.items() if name.startswith(("general", "llama", "tokenizer"))
    }
    assert read["general.architecture"] == "llama"
    assert read["general.name"] == "lhama"
    assert read["general.license"] == "mit"
    assert read["general.languages"] == ["pt"]
    assert read["general.file_type"] == 1
    assert read["llama.rope.freq_base"] == 50_000.0
    assert read["llama.context_length"] == 128
    assert (read["llama.attention.head_count"], read["llama.attention.head_count_kv"]) == (4, 2)
    assert read["tokenizer.ggml.tokens"] == vocabulary_of(tokenizer)
    assert read["tokenizer.ggml.add_space_prefix"] is False
    assert read["tokenizer.ggml.add_bos_token"] is True
    assert [read[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "padding", "unknown")] == [1, 2, 3, 0]
    assert "generation %" not in read["tokenizer.chat_template"]
    again = AutoModelForCausalLM.from_pretrained(str(folder), gguf_file="lhama-F16.gguf", dtype=torch.float32)
    ids = torch.tensor([tokenizer("Era uma vez uma lhama.")["input_ids"]])
    with torch.no_grad():
        assert torch.allclose(again(ids).logits, from_pretrained(model)[0](ids).logits, atol=0.02)


def test_more_embeddings_than_entries_and_tied_ones(tokenizer: Any, tmp_path: Path) -> None:
    import gguf

    model = save_model(tmp_path / "lhama", tokenizer, vocab_size=640, tie_word_embeddings=True)
    folder = export(model, tmp_path / "out", type="q8_0")
    read = gguf.GGUFReader(str(folder / "lhama-Q8_0.gguf"))
    tokens, kinds = read.fields["tokenizer.ggml.tokens"].contents(), read.fields["tokenizer.ggml.token_type"].contents()
    assert len(tokens) == len(kinds) == 640
    assert tokens[600:] == [f"[PAD{number}]" for number in range(600, 640)]
    assert set(kinds[600:]) == {5}
    names = {tensor.name: tensor.tensor_type.name for tensor in read.tensors}
    assert "output.weight" not in names
    assert Counter(names.values()) == {"Q8_0": 15, "F32": 5}


def test_rows_that_fill_no_block_stay_exact(tokenizer: Any, tmp_path: Path) -> None:
    import gguf

    model = save_model(tmp_path / "lhama", tokenizer, intermediate_size=80)
    folder = export(model, tmp_path / "out", type="q8_0")
    types = {
        tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(str(folder / "lhama-Q8_0.gguf")).tensors
    }
    assert types["blk.0.ffn_down.weight"] == "F16"
    assert types["blk.0.ffn_up.weight"] == "Q8_0"


def test_the_template_is_the_same_without_the_tag_of_training(tokenizer: Any) -> None:
    template = TEMPLATE_PATH.read_text(encoding="utf-8")
    tokenizer.chat_template = portable_template(template)
    assert "generation %}" not in tokenizer.chat_template
    plain = tokenizer.apply_chat_template([{"role": "system", "content": "Breve."}, *TURN], tokenize=False)
    tokenizer.chat_template = template
    assert plain == tokenizer.apply_chat_template([{"role": "system", "content": "Breve."}, *TURN], tokenize=False)


# --- llama.cpp


@needs_llama_cpp
def test_ids_of_ten_thousand_lines_are_llama_cpp_s(superword_tokenizer: Any, tmp_path: Path) -> None:  # noqa: F811
    folder = export(save_model(tmp_path / "lhama", superword_tokenizer), tmp_path / "out", type="f16")
    lines = [
        *nasty_texts(superword_tokenizer),
        *TEXTS,
        *NASTY.values(),
        *hard_strings(vocabulary_of(superword_tokenizer), 6_500),
    ]
    lines = [line for line in dict.fromkeys(lines) if line]
    assert len(lines) >= 10_000
    model = opened(folder / "lhama-F16.gguf")
    found = [model.tokenize(line.encode(), add_bos=False, special=False) for line in lines]
    assert encode_texts(superword_tokenizer, lines) == found


@needs_llama_cpp
@pytest.mark.parametrize("shape", [{}, {"head_dim": 32}, {"tie_word_embeddings": True, "num_key_value_heads": 4}])
def test_logits_and_greedy_text_are_the_model_s(tokenizer: Any, tmp_path: Path, shape: dict[str, Any]) -> None:
    folder = save_model(tmp_path / "lhama", tokenizer, **shape)
    model = from_pretrained(folder)[0]
    output = export(folder, tmp_path / "out", type="f16,q8_0,q4_0")
    ids = tokenizer("O menino abriu a porta e viu o mar, que estava calmo.")["input_ids"]
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].numpy()
        written = model.generate(torch.tensor([ids]), max_new_tokens=30, do_sample=False, eos_token_id=-1)[0].tolist()
    differences = {}
    for kind in ("F16", "Q8_0", "Q4_0"):
        other = opened(output / f"lhama-{kind}.gguf", logits_all=True, type_k=0, type_v=0)
        other.eval(ids)
        differences[kind] = float(np.abs(other.scores[: len(ids)] - expected).max())
        if kind == "F16":
            other.reset()
            pieces = other.generate(ids, temp=0.0, repeat_penalty=1.0)
            assert [next(pieces) for _ in range(30)] == written[len(ids) :]
    assert differences["F16"] < 1e-2 < differences["Q8_0"] < differences["Q4_0"]
    rows = json.loads((output / "run.json").read_text())["files"]
    assert next(row["checks"]["same_greedy_text"] for row in rows) is True
    assert all(row["checks"]["lines_with_other_ids"] == 0 and row["checks"]["lines"] > 300 for row in rows)


@needs_llama_cpp
def test_a_chat_model_answers_with_its_template_and_stops(chat_folder: Path, tmp_path: Path) -> None:  # noqa: F811
    output = export(chat_folder, tmp_path / "out", type="f16,q8_0")
    for kind in ("F16", "Q8_0"):
        model = opened(output / f"{chat_folder.name}-{kind}.gguf")
        answer = model.create_chat_completion([{"role": "user", "content": QUESTION}], max_tokens=60, temperature=0)
        choice = answer["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == (ANSWER, "stop")
        assert answer["usage"]["prompt_tokens"] == len(
            from_pretrained(chat_folder)[1].apply_chat_template(TURN[:1])["input_ids"]
        )
    assert json.loads((output / "run.json").read_text())["is_chat"] is True


@needs_llama_cpp
def test_k_quants_are_llama_cpp_s_and_the_types_are_said(tokenizer: Any, tmp_path: Path, capfd: Any) -> None:
    wide = save_model(tmp_path / "wide", tokenizer, hidden_size=256, intermediate_size=512)
    rows = json.loads((export(wide, tmp_path / "a", type="q4_k_m,q8_0") / "run.json").read_text())["files"]
    assert {"Q4_K", "Q6_K"} == set(rows[0]["tensors"])
    assert rows[0]["bytes"] < rows[1]["bytes"]
    narrow = save_model(tmp_path / "narrow", tokenizer)
    rows = json.loads((export(narrow, tmp_path / "b", type="q4_k_m") / "run.json").read_text())["files"]
    assert set(rows[0]["tensors"]) == {"Q5_0", "Q8_0"}
    said = capfd.readouterr()
    assert re.search(r"q4_k_m +\d+ kB: \d+ Q5_0, \d+ Q8_0", said.out)
    assert "divisible" not in said.out + said.err
    assert "llama_" not in said.err
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("ttl-")]


@needs_llama_cpp
def test_files_are_measured_in_llama_cpp(tokenizer: Any, packed_folder: Path, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "lhama", tokenizer)
    output = export(
        folder, tmp_path / "out", type="f16,q4_0", measure=True, held_out=[str(packed_folder)], held_out_max_tokens=500
    )
    content = json.loads((output / "run.json").read_text())
    reference, (whole, small) = content["reference"], content["files"]
    assert whole["scored_tokens"] == reference["scored_tokens"] > 300
    assert whole["bits_per_byte"] == pytest.approx(reference["bits_per_byte"], rel=1e-3)
    assert small["bits_per_byte"] != whole["bits_per_byte"]
    assert small["bits_per_byte"] == pytest.approx(whole["bits_per_byte"], rel=0.1)
    assert whole["signal"]["cloze_bits_per_byte"] == pytest.approx(reference["signal"]["cloze_bits_per_byte"], rel=1e-3)
    card = (output / "README.md").read_text()
    assert f"| `lhama-F16.gguf` | {whole['bytes'] / 1e6:.1f} | {whole['bits_per_byte']:.4f} |" in card
    assert (output / "quality.png").stat().st_size > 5_000
    assert whole["speed"]["new_tokens_per_second"] > reference["speed"]["new_tokens_per_second"] > 0
    assert 0 < whole["speed"]["peak_mb"] < reference["speed"]["peak_mb"]
    assert "new tokens/s" in card


@needs_llama_cpp
def test_a_short_context_and_a_broken_template(tokenizer: Any, tmp_path: Path) -> None:
    short = save_model(tmp_path / "short", tokenizer, max_position_embeddings=16)
    (row,) = json.loads((export(short, tmp_path / "a", type="f16") / "run.json").read_text())["files"]
    assert row["checks"]["greedy_tokens"] == 8
    broken = save_model(tmp_path / "broken", tokenizer)
    (broken / "chat_template.jinja").write_text("{% if %}")
    with pytest.raises(InputError, match=r"broken-Q8_0.gguf: llama.cpp cannot read it \(TemplateSyntaxError: Expected"):
        export(broken, tmp_path / "b")
    assert not (tmp_path / "b").exists()


@pytest.mark.slow
def test_without_llama_cpp_files_are_written_and_said_to_be_unchecked(
    tokenizer: Any, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *more: None if name == "llama_cpp" else found(name, *more)
    )
    folder = save_model(tmp_path / "lhama", tokenizer)
    output = export(folder, tmp_path / "out", type="q8_0", measure=True, held_out=["sample"], held_out_max_tokens=200)
    assert "not checked: pip install 'teenytinyllama[gguf]' brings llama.cpp" in capsys.readouterr().out
    (row,) = json.loads((output / "run.json").read_text())["files"]
    assert not {"checks", "bits_per_byte", "speed"} & set(row)
    assert not (output / "quality.png").exists()
    assert f"| `lhama-Q8_0.gguf` | {row['bytes'] / 1e6:.1f} | not measured |" in (output / "README.md").read_text()


# --- other people's tokenizers


def byte_level(texts: list[str], splits: bool = True) -> Any:
    """A tokenizer of GPT-2's kind; one that splits at no space joins pieces across words."""
    backend: Any = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=splits)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, special_tokens=["<|fim|>"], show_progress=False),
    )
    return GenericTokenizer(tokenizer_object=backend, bos_token="<|fim|>", eos_token="<|fim|>", pad_token="<|fim|>")


def with_prefix(texts: list[str]) -> Any:
    """A tokenizer of the first Llama's kind: byte tokens, and a space in front of every text."""
    backend: Any = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words = [f"▁{word}" for text in texts for word in text.split()]
    backend.train_from_iterator(words, trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False))
    content = json.loads(backend.to_str())
    content["added_tokens"] = content["added_tokens"][:3]
    backend = Tokenizer.from_str(json.dumps(content))
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return GenericTokenizer(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@needs_llama_cpp
def test_a_byte_level_bpe_is_right(sample_texts: list[str], tmp_path: Path) -> None:
    found = byte_level(sample_texts)
    vocabulary = read_vocabulary("x", found)
    assert (vocabulary.model, vocabulary.pre) == ("gpt2", "gpt-2")
    assert vocabulary.merges
    folder = export(save_model(tmp_path / "lhama", found), tmp_path / "out", type="f16")
    model = opened(folder / "lhama-F16.gguf")
    for text in sample_texts[:50]:
        assert model.tokenize(text.encode(), add_bos=False) == found(text)["input_ids"]


@needs_llama_cpp
def test_a_byte_level_bpe_that_llama_cpp_cuts_otherwise_is_refused(sample_texts: list[str], tmp_path: Path) -> None:
    found = byte_level(sample_texts, splits=False)
    model = save_model(tmp_path / "lhama", found)
    with pytest.raises(
        InputError, match=r"model_name_or_path=.*lhama: llama.cpp gives other ids than its tokenizer, for example of"
    ):
        export(model, tmp_path / "out", type="f16")
    assert not (tmp_path / "out").exists()


@needs_llama_cpp
def test_a_tokenizer_with_a_space_in_front_is_right(sample_texts: list[str], tmp_path: Path) -> None:
    found = with_prefix(sample_texts)
    vocabulary = read_vocabulary("x", found)
    assert vocabulary.model == "llama"
    assert vocabulary.space_prefix
    folder = export(save_model(tmp_path / "lhama", found), tmp_path / "out", type="f16")
    model = opened(folder / "lhama-F16.gguf")
    for text in [*sample_texts[:50], "ação 🙂", " dois  espaços"]:
        assert model.tokenize(text.encode(), add_bos=True) == found(text)["input_ids"]


# --- refusals


def test_a_word_piece_tokenizer_is_refused() -> None:
    found = GenericTokenizer(tokenizer_object=Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]")))
    with pytest.raises(
        InputError, match="model_name_or_path=x: its tokenizer is a WordPiece; only a BPE is written as GGUF"
    ):
        read_vocabulary("x", found)


@pytest.mark.parametrize(("given", "message"), [
    ({"type": "q3_k_s"}, "type=q3_k_s: format=gguf has f16, q8_0, q4_0, q4_k_m"),
    ({"type": "q4_k"}, "Did you mean 'q4_k_m'"),
    ({"model_name_or_path": ""}, "model_name_or_path: missing"),
    ({"name": "a/b"}, "name=a/b: must begin with a letter or a digit"),
    ({"held_out_max_tokens": 0}, "held_out_max_tokens=0: must be at least 1"),
    ({"repository": "x"}, "repository=x: is no repository of the Hub"),
])  # fmt: skip
def test_values_that_cannot_be_exported(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        ExportConfig(**{"model_name_or_path": "x", **given})


def test_models_that_cannot_be_written(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(model: Path, message: str, **more: Any) -> None:
        before = sorted(tmp_path.iterdir())
        with pytest.raises(InputError, match=message):
            export(model, tmp_path / "out", **more)
        assert sorted(tmp_path.iterdir()) == before

    gpt2 = tmp_path / "gpt2"
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2)).save_pretrained(gpt2)
    tokenizer.save_pretrained(gpt2)
    refused(gpt2, "is of model_type gpt2; llama and mistral are written as GGUF here")
    refused(save_model(tmp_path / "bias", tokenizer, attention_bias=True), "its config has attention_bias that are not")
    refused(save_model(tmp_path / "short", tokenizer, vocab_size=590), "has 600 entries and the model 590 embeddings")
    odd = save_model(tmp_path / "odd", tokenizer, hidden_size=36, intermediate_size=36, num_attention_heads=2)
    refused(odd, "type=q4_0: the model's rows of 36 values do not fit its blocks", type="q4_0")
    model = save_model(tmp_path / "lhama", tokenizer)
    monkeypatch.setattr("teenytinyllama.checks.free_disk_bytes", lambda folder: 1000)
    refused(model, r"output_dir=.*out: about [\d.]+ MB are needed there and 1.00 kB are free. Free some")
    monkeypatch.undo()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused(model, r"gguf: not installed. Install what this needs: pip install 'teenytinyllama\[gguf\]'")


def test_a_quantised_model_is_refused(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_model(tmp_path / "lhama", tokenizer)
    model, _ = from_pretrained(folder)
    model.config.quantization_config = {"quant_method": "torchao"}
    monkeypatch.setattr("teenytinyllama.models.from_pretrained", lambda *_: (model, tokenizer))
    for form in ("gguf", "int8", "safetensors"):
        with pytest.raises(
            InputError, match=r"model_name_or_path=.*: its weights are quantised already \(by torchao\)"
        ):
            export(folder, tmp_path / "out", format=form)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_another_precision_in_shards(tokenizer: Any, tmp_path: Path, packed_folder: Path) -> None:
    install_chat_template(tokenizer)
    model = save_model(tmp_path / "lhama", tokenizer)
    output = export(model, tmp_path / "out", format="safetensors", max_shard_size="100KB", measure=True,
                    held_out=[str(packed_folder)], held_out_max_tokens=200, repository="ana/lhama")  # fmt: skip
    content = json.loads((output / "run.json").read_text())
    (row,) = content["files"]
    weights = [name for name in (row["path"], *row["others"]) if name.endswith(".safetensors")]
    assert len(weights) > 1
    assert {"config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors.index.json"} <= set(
        row["others"]
    )
    assert row["bits_per_byte"] == pytest.approx(content["reference"]["bits_per_byte"], rel=0.01)
    assert row["speed"]["new_tokens_per_second"] > 0
    loaded = AutoModelForCausalLM.from_pretrained(output)
    assert loaded.dtype == torch.bfloat16
    card = yaml.safe_load((output / "README.md").read_text().split("---")[1])
    assert (card["base_model"], card["library_name"]) == ("ana/lhama", "transformers")
    assert "base_model_relation" not in card
    assert cli.main(["publish", str(output), "--to", f"folder:{tmp_path / 'there'}"]) == 0
    assert {path.name for path in (tmp_path / "there").iterdir()} >= {
        *weights,
        "config.json",
        "README.md",
        "export.json",
    }


@pytest.mark.parametrize(("given", "message"), [
    ({"format": "safetensors", "type": "f16,f32"}, "type=f16,f32: several types at once are for gguf. Give one."),
    ({"format": "safetensors", "type": "q8_0"}, "type=q8_0: format=safetensors has f32, bf16, f16"),
    ({"format": "int8", "type": "f16"}, "type=f16: format=int8 has int8"),
])  # fmt: skip
def test_types_of_another_form(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        ExportConfig(model_name_or_path="x", **given)


def test_files_that_llama_cpp_reads_otherwise_are_not_kept() -> None:
    checks = {"lines": 300, "lines_with_other_ids": 0, "largest_logit": 10.0, "largest_difference": 0.1}
    _ensure_same("f16", checks)
    _ensure_same("q4_0", {**checks, "largest_difference": 3.0})
    with pytest.raises(RunFailedError, match=r"type=f16: llama.cpp's logits differ by 0.3 .* Weights beyond float16"):
        _ensure_same("f16", {**checks, "largest_difference": 0.3})
    with pytest.raises(
        RunFailedError, match="type=q8_0: llama.cpp gives other ids than the tokenizer on 2 of 300 lines"
    ):
        _ensure_same("q8_0", {**checks, "lines_with_other_ids": 2})


@needs_llama_cpp
def test_a_wrong_order_of_rows_is_noticed(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of the query's rows is what converters get wrong: the check must see it, and leave nothing."""
    other_tool("llama_cpp")
    monkeypatch.setattr(gguf_file, "_permuted", lambda values, heads: values)
    with pytest.raises(RunFailedError, match="llama.cpp's logits differ by"):
        export(save_model(tmp_path / "lhama", tokenizer), tmp_path / "out", type="f16")
    assert [path.name for path in tmp_path.iterdir()] == ["lhama"]


# --- the folder, the card, the Hub


def test_the_same_command_is_done_and_another_is_refused(tokenizer: Any, tmp_path: Path, capsys: Any) -> None:
    model = save_model(tmp_path / "lhama", tokenizer)
    output = export(model, tmp_path / "out", type="q8_0")
    before = {path.name: sha256_file(path) for path in output.iterdir()}
    assert export(model, tmp_path / "out", type="q8_0") == output
    assert "holds this export already" in capsys.readouterr().out
    with pytest.raises(InputError, match="holds files of other inputs or settings"):
        export(model, tmp_path / "out", type="f16")
    assert {path.name: sha256_file(path) for path in output.iterdir()} == before
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.txt").write_text("x")
    with pytest.raises(InputError, match="is not empty"):
        export(model, tmp_path / "theirs", type="q8_0")


def test_the_command_line_and_its_defaults(tokenizer: Any, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    model = save_model(tmp_path / "meu modelo", tokenizer)
    (model / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# x\n")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["export", "meu modelo"]) == 0
    said = capsys.readouterr().out
    assert "quality    not measured: no held-out text. Give held_out" in said
    assert said.splitlines()[-1] == str(tmp_path / "meu modelo-gguf")
    assert {path.name for path in (tmp_path / "meu modelo-gguf").iterdir()} >= {
        "meu-modelo-Q8_0.gguf",
        "Modelfile",
        "README.md",
        "run.json",
    }
    card = yaml.safe_load((tmp_path / "meu modelo-gguf" / "README.md").read_text().split("---")[1])
    assert card["license"] == "cc-by-4.0"
    assert card["library_name"] == "gguf"
    assert "base_model_relation" not in card


def test_what_files_are_called(tmp_path: Path) -> None:
    for place, name in {
        "160m/chat": "160m-chat",
        "160m/base/checkpoint-20": "base-checkpoint-20",
        "lhama": "lhama",
    }.items():
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        assert ExportConfig(model_name_or_path=str(tmp_path / place)).model_name == name
    assert ExportConfig(model_name_or_path="ana/meu-modelo").model_name == "meu-modelo"
    assert ExportConfig(model_name_or_path="460m-chat").model_name == "TeenyTinyLlama-460m-Chat"
    assert ExportConfig(model_name_or_path="x", name="y").model_name == "y"


def test_what_ollama_reads(tokenizer: Any) -> None:
    model = tiny_model(tokenizer)
    files = ollama_files("x.gguf", model, tokenizer)
    assert files["Modelfile"].startswith('FROM ./x.gguf\nTEMPLATE """{{ .Prompt }}"""\nPARAMETER num_ctx 128\n')
    assert files["template"] == "{{ .Prompt }}"
    install_chat_template(tokenizer)
    files = ollama_files("x.gguf", model, tokenizer)
    assert "<instruction>{{ if .System }}{{ .System }}\n\n{{ end }}{{ .Prompt }}</instruction>" in files["Modelfile"]
    assert 'PARAMETER stop "</s>"' in files["Modelfile"]
    assert json.loads(files["params"])["stop"] == ["</s>"]
    assert files["template"] in files["Modelfile"]
    tokenizer.chat_template = "{{ messages }}"
    assert set(ollama_files("x.gguf", model, tokenizer)) == {"Modelfile", "params"}


@pytest.mark.slow
def test_an_export_is_published_to_a_branch_of_its_model(server: HubServer, tokenizer: Any, tmp_path: Path) -> None:  # noqa: F811
    model = save_model(tmp_path / "lhama", tokenizer)
    output = export(model, tmp_path / "out", type="q8_0", repository="ana/modelo")
    done = publish(server, output, "--revision", "gguf")
    assert done.returncode == 0, done.stderr
    names = {"README.md", "Modelfile", "template", "params", "run.json", "export.json", "lhama-Q8_0.gguf"}
    assert remote_names(server, "gguf") == names
    card = server.files("ana/modelo", "gguf")["README.md"].decode()
    front = yaml.safe_load(card.split("---")[1])
    assert (front["base_model"], front["base_model_relation"]) == ("ana/modelo", "quantized")
    assert "ollama run hf.co/ana/modelo:Q8_0" in card
    assert str(tmp_path) not in card
    again = publish(server, output, "--revision", "gguf")
    assert again.returncode == 0
    assert "is there already" in again.stdout
    refused = publish(server, output, "--optimizer_state")
    assert refused.returncode == 2
    assert "optimizer_state: for a run;" in refused.stderr
    (output / "lhama-Q8_0.gguf").write_bytes(b"x")
    refused = publish(server, output, "--revision", "gguf")
    assert refused.returncode == 2
    assert "has changed since the export" in refused.stderr


def test_an_export_is_published_to_a_folder(tokenizer: Any, tmp_path: Path, capsys: Any) -> None:
    output = export(save_model(tmp_path / "lhama", tokenizer), tmp_path / "out", type="q8_0")
    assert cli.main(["publish", str(output), "--to", f"folder:{tmp_path / 'there'}"]) == 0
    assert sha256_file(tmp_path / "there" / "lhama-Q8_0.gguf") == sha256_file(output / "lhama-Q8_0.gguf")
    shutil.rmtree(tmp_path / "there")
    assert cli.main(["publish", str(output), "--to", "ana/x", "--dry_run"]) == 0
    assert "export: gguf q8_0" in capsys.readouterr().out
