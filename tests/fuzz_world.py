"""What bad input is made of: one small valid input of each kind, odd files, and a valid config of each verb."""

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

SHAPE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
         "num_key_value_heads": 2}  # fmt: skip
NAMES = ("a menina", "o gato", "a lhama", "o menino", "a avó", "o cão")
PLACES = ("na praia", "em casa", "no mato", "na escola", "no rio")

# A config is relative to the folder of its case: inputs lie in `in`, and `out` does not exist.
TRAINING = {"output_dir": "out", "tokens_per_step": 128, "max_tokens": 256, "logging_steps": 1, "sample_new_tokens": 4}
TUNING = {"output_dir": "out", "tokens_per_step": 192, "max_steps": 2, "sample_new_tokens": 4, "final_answers": 2,
          "final_answer_tokens": 4, "check_first_loss": False, "context": 64}  # fmt: skip
SOURCE = {"inputs": ["in/texts"], "license": "cc-by-4.0", "register": "fiction"}
_LABORATORY = {"tokenizer": "in/tokenizer", "packed": "in/packed", "output_dir": "out", "sizes": ["0.1M", "0.5M"],
               "tokens": [2000, 1000]}  # fmt: skip
_PAIRS = {name: value for name, value in TUNING.items() if not name.startswith(("final", "check", "tokens"))}

# Of each verb: valid configs. A key of one underscore is an argument that stands without a key.
CONFIGS: dict[str, list[dict[str, Any]]] = {
    "demo": [{"output_dir": "out", "max_tokens": 4096}],
    "init": [{"_": ["out"]}],
    "plan": [{"budget": 500}, {"hours": 10, "gpu": "h100", "gpus": 2}, {"calibrate": ["in/run"], "preset": "tiny", "kwh": 1000},
             {"tokens": 1e9, "preset": "160m", "write": "plan.yaml", "json": "plan.json"}],
    "tokenizer": [{"inputs": ["in/texts"], "output_dir": "out", "vocab_size": 380},
                  {"inputs": ["in/texts/contos.jsonl"], "validation_inputs": ["in/texts/nota.txt"], "output_dir": "out",
                   "vocab_size": 400, "num_superwords": 8}],
    "corpus": [{"output_dir": "out", "sources": {"contos": SOURCE}, "workers": 1, "language": False, "variety": False,
                "quality": False},
               {"output_dir": "out", "workers": 1, "variety": False, "quality": {"min_words": 3},
                "sources": {"contos": {**SOURCE, "weight": 2}, "leis": {"inputs": ["in/pages"], "license": "other"}}}],
    "pack": [{"inputs": ["in/texts"], "tokenizer": "in/tokenizer", "output_dir": "out", "context": 32},
             {"inputs": ["in/texts/tabela.parquet"], "validation_inputs": ["in/texts/nota.txt"], "txt_unit": "line",
              "tokenizer": "in/tokenizer", "output_dir": "out", "context": 16, "num_workers": 1}],
    "conversations": [{"inputs": ["in/instructions.jsonl"], "model_name_or_path": "in/chat", "output_dir": "out",
                       "context": 64, "validation_fraction": 0.2}],
    "pretrain": [{"preset": "tiny", "shape": SHAPE, "tokenizer": "in/tokenizer", "packed": "in/packed", **TRAINING},
                 {"preset": "tiny", "tokenizer": "in/tokenizer", "inputs": ["in/texts"], "context": 32, **TRAINING},
                 {"model_name_or_path": "in/model", "packed": "in/packed", **TRAINING},
                 {"decay_from": "in/run/checkpoint-1", "output_dir": "out", "max_tokens": 512}],
    "sft": [{"model_name_or_path": "in/chat", "conversations": "in/conversations", **TUNING},
            {"model_name_or_path": "in/chat", "inputs": ["in/instructions.jsonl"], "lora_r": 2, **TUNING}],
    "dpo": [{"model_name_or_path": "in/chat", "inputs": ["in/preferences.jsonl"], "pairs_per_step": 2, **_PAIRS},
            {"model_name_or_path": "in/chat", "preferences": "in/preferences", "pairs_per_step": 2, **_PAIRS}],
    "merge": [{"_": ["in/adapter", "out"], "base_model": "in/chat"}],
    "lab": [{**_LABORATORY, "arms": {"adamw": {"learning_rate": [0.001, 0.002]}, "muon": {"optimizer": "muon"}}}],
    "evaluate": [{"_": ["in/model"], "held_out": ["in/texts"], "output_dir": "out", "held_out_max_tokens": 500},
                 {"_": ["in/model"], "tasks": ["assin2_rte", "calame"], "data_dir": "in/benchmarks", "limit": 2,
                  "output_dir": "out", "context": 64},
                 {"_": ["in/run"], "held_out": ["in/texts/nota.txt"], "held_out_max_tokens": 500}],
    "classify": [{"_": ["local", "in/model"], "train_file": ["in/labels.csv"], "output_dir": "out", "seeds": 1,
                  "max_train_rows": 10}],
    "emissions": [{"_": ["in/run"]}, {"_": ["in/run"], "price": 1.5, "elsewhere": "BRA,PRT"}],
    "report": [{"_": ["in/run"], "output_file": "out.html"}, {"_": ["in/run"], "follow": True, "output_file": "out.html"}],
    "card": [{"_": ["in/run"]}, {"_": ["in/run"], "check": True}, {"_": ["in/run"], "repository": "ana/m", "language": "pt"}],
    "publish": [{"_": ["in/run"], "to": "folder:out"}, {"_": ["in/run"], "to": "ana/modelo", "dry_run": True},
                {"_": ["in/packed"], "to": "folder:out", "license": ["cc0-1.0"]},
                {"_": ["in/texts"], "to": "folder:out", "license": ["cc0-1.0"], "staging": "staging"},
                {"_": ["in/preferences.jsonl"], "to": "folder:out", "license": ["mit"], "kind": "preferences"}],
    "chat": [{"_": ["in/model"], "max_new_tokens": 4}, {"_": ["in/chat"], "max_new_tokens": 4, "system": "Fale pouco."},
             {"_": ["in/chat"], "check_template": True}, {"_": ["in/adapter"], "base_model": "in/chat", "max_new_tokens": 4}],
    "export": [{"_": ["in/model"], "output_dir": "out", "type": "q8_0,f16", "measure": False, "name": "lhama"},
               {"_": ["in/adapter"], "base_model": "in/chat", "output_dir": "out", "format": "safetensors", "type": "bf16",
                "measure": False, "license": "mit", "repository": "ana/modelo"}],
    "bench": [{"_": ["in/model"], "output_dir": "out", "prompt_tokens": 8, "new_tokens": 4, "batch_sizes": [1]}],
    "compare": [{"_": ["in/model", "in/chat"], "output_dir": "out", "prompts": "in/instructions.jsonl", "n_prompts": 2,
                 "max_new_tokens": 4, "serve": False},
                {"_": ["in/chat", "references"], "output_dir": "out", "prompts": "in/instructions.jsonl", "n_prompts": 1,
                 "max_new_tokens": 2, "serve": False}],
    "serve": [{"_": ["in/chat"], "max_new_tokens": 4, "name": "lhama"}],
    "app": [{"_": ["in/chat"], "port": 7861}, {"_": ["ana/modelo"], "space_dir": "out", "instructions": ["in/instructions.jsonl"]}],
}  # fmt: skip


def _jsonl(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def make_world(folder: Path) -> Path:
    """Make every input that `CONFIGS` names, with the package itself, and return the folder `folder/in`."""
    from benchmark_rows import write_rows

    from teenytinyllama import train_tokenizer
    from teenytinyllama.data.pack import PackConfig, pack
    from teenytinyllama.data.sample import sample_documents

    inputs = folder / "in"
    texts = [row["text"] for row in sample_documents("train", 60)]
    _write_texts(inputs, texts)
    _write_odd(inputs / "odd", texts)
    train_tokenizer(texts, vocab_size=400).save_pretrained(inputs / "tokenizer")
    write_rows(inputs / "benchmarks")
    pack(PackConfig(inputs=[str(inputs / "texts")], tokenizer=str(inputs / "tokenizer"), context=32,
                    output_dir=str(inputs / "packed"), validation_fraction=0.2))  # fmt: skip
    _save_models(inputs)
    _prepare_tuning(inputs)
    _train(inputs)
    return inputs


def _write_texts(inputs: Path, texts: list[str]) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"text": text, "metadata": f"source: contos; license: CC0-1.0; n: {n}"} for n, text in enumerate(texts)]
    _jsonl(inputs / "texts" / "contos.jsonl", rows[:30])
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows[30:50]), inputs / "texts" / "tabela.parquet")
    (inputs / "texts" / "nota.txt").write_text("\n".join(texts[50:]), encoding="utf-8")
    with gzip.open(inputs / "texts" / "curtas.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows[:5])
    (inputs / "pages").mkdir()
    page = "<html><head><meta charset='utf-8'><title>Lei</title></head><body><p>{}</p></body></html>"
    for number in range(3):
        (inputs / "pages" / f"lei{number}.html").write_text(page.format(texts[number] * 3), encoding="utf-8")
    asked = [(name, place) for name in NAMES for place in PLACES]
    turns = [[{"role": "user", "content": f"Onde está {name} {place}?"}, {"role": "assistant", "content": f"{name} está."}]
             for name, place in asked]  # fmt: skip
    _jsonl(inputs / "instructions.jsonl", [{"conversations": turn, "source": "onde"} for turn in turns])
    _jsonl(inputs / "preferences.jsonl", [{"prompt": f"Onde está {name}, {place}?", "chosen": f"Ora, {name} está {place}.",
                                           "rejected": "Não sei."} for name, place in asked])  # fmt: skip
    lines = [f'"{name} está {place}.",{number % 2}\n' for number, (name, place) in enumerate(asked)]
    (inputs / "labels.csv").write_text("text,label\n" + "".join(lines), encoding="utf-8")


def _write_odd(folder: Path, texts: list[str]) -> None:
    """Write files of every kind with which something is wrong."""
    import pyarrow
    import pyarrow.parquet

    folder.mkdir()
    tables: dict[str, dict[str, list[Any]]] = {
        "wrong_columns": {"corpo": texts[:3], "id": [1, 2, 3]}, "nulls": {"text": [None, texts[0], None]},
        "all_null": {"text": [None, None]}, "numbers": {"text": [1, 2], "label": [1.5, None]}, "no_rows": {"text": []},
        "nested": {"text": [{"a": [texts[0]]}], "metadata": [{"b": 1}]}, "lists": {"text": [[texts[0]], []]},
        "bytes": {"text": [b"\xff\xfe", b"abc"]}, "empty_texts": {"text": ["", " ", "\n"]},
        "odd_texts": {"text": ["\0", "\ufeff", "\u202e\u0301", "a" * 100_000, "😀" * 50], "metadata": ["", None, "x", ";:", "a: b"]},
    }  # fmt: skip
    for name, table in tables.items():
        pyarrow.parquet.write_table(pyarrow.table(table), folder / f"{name}.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"text": texts[:5]}), folder.absolute() / "hora:10.parquet")
    rows: dict[str, list[Any]] = {
        "values": [1, "a", None, [], {}, True], "null_text": [{"text": None}, {"text": 3}, {"text": ["a"]}],
        "no_text": [{"corpo": "a"}], "odd_turns": [{"conversations": [{"role": "x", "content": 1}]}, {"conversations": None},
        {"conversations": []}, {"conversations": [{"role": "user", "content": ""}]}, {"prompt": 1, "chosen": [], "rejected": {}}],
        "same_pair": [{"prompt": "a", "chosen": "b", "rejected": "b"}], "metadata": [{"text": "a b c", "metadata": {"a": 1}}],
        "mixed": [{"text": texts[0], "label": "a"}, {"text": texts[1], "label": 1}, {"text": texts[2]}],
    }  # fmt: skip
    for name, items in rows.items():
        _jsonl(folder / f"{name}.jsonl", items)
    plain: dict[str, bytes] = {
        "empty.jsonl": b"", "empty.parquet": b"", "empty.txt": b"", "empty.csv": b"", "empty.html": b"", "empty.json": b"",
        "blank.jsonl": b"\n\n \n", "array.json": b"[]", "number.json": b"3", "half.json": b'[{"text": "a"',
        "deep.jsonl": b"[" * 5000 + b"\n", "deep.json": b'{"a":' * 5000, "huge_number.jsonl": b'{"text": 1e999, "n": ' + b"9" * 5000 + b"}\n",
        "latin1.txt": "ação".encode("latin-1") * 20, "latin1.jsonl": '{"text": "ação"}\n'.encode("latin-1"), "nul.txt": b"a\0b" * 9,
        "utf16.txt": "uma ação".encode("utf-16"), "bom.csv": b"\xef\xbb\xbftext,label\na,0\nb,1\n", "surrogate.jsonl": b'{"text": "\\ud800"}\n',
        "ragged.csv": b"text,label\na\nb,1,2,3\n", "quotes.csv": b'text,label\n"a,0\nb,1\n', "no_header.csv": b"\n\n", "one_label.csv": b"text,label\na,0\nb,0\n",
        "same_columns.csv": b"text,text,label\na,b,0\n", "huge_field.csv": b"text,label\n" + b"a" * 200_000 + b",0\n", "tabs.tsv": b"text\tlabel\n\t\t\t\n",
        "zip.parquet": b"PK\x03\x04" + b"\0" * 40, "magic.parquet": b"PAR1PAR1", "cut.jsonl.gz": gzip.compress(b'{"text": "a"}\n' * 999)[:-12],
        "not.jsonl.gz": b"text", "garbage.html": bytes(range(256)) * 4, "deep.html": b"<div>" * 20_000, "page.warc": b"WARC/1.0\r\nContent-Length: 9999999999\r\n\r\nx",
        "cut.warc.gz": gzip.compress(b"WARC/1.0\r\nWARC-Type: response\r\n\r\n")[:-5], "long_line.txt": b"palavra " * 60_000, "program.exe": b"MZ\0\0",
    }  # fmt: skip
    for name, content in plain.items():
        (folder / name).write_bytes(content)
    (folder / "empty_folder").mkdir()
    (folder / "folder.jsonl").mkdir()
    (folder / "loop.jsonl").symlink_to("loop.jsonl")
    (folder / "nowhere.txt").symlink_to("nada")


def _save_models(inputs: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    from teenytinyllama.chat.template import install_chat_template
    from teenytinyllama.models import load_tokenizer

    for name in ("model", "chat"):
        tokenizer = load_tokenizer("tokenizer", str(inputs / "tokenizer"))
        if name == "chat":
            install_chat_template(tokenizer)
        torch.manual_seed(0)
        config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
                             pad_token_id=3, **SHAPE)  # fmt: skip
        model = LlamaForCausalLM(config)
        model.save_pretrained(inputs / name)
        tokenizer.save_pretrained(inputs / name)
    model.name_or_path = "in/chat"
    adapter: Any = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    adapter.save_pretrained(inputs / "adapter")
    tokenizer.save_pretrained(inputs / "adapter")


def _prepare_tuning(inputs: Path) -> None:
    from teenytinyllama.tuning.base import DPO, SFT

    for stage, source, name in ((SFT, "instructions", "conversations"), (DPO, "preferences", "preferences")):
        values = {"model_name_or_path": str(inputs / "chat"), "inputs": [str(inputs / f"{source}.jsonl")], "context": 64,
                  "validation_fraction": 0.2, "output_dir": str(inputs / f"{name}-run")}  # fmt: skip
        made = stage.prepare_inputs(values)[name]
        shutil.move(made, inputs / name)
        shutil.rmtree(inputs / f"{name}-run", ignore_errors=True)


def _train(inputs: Path) -> None:
    from teenytinyllama.arguments import build, check_types
    from teenytinyllama.publishing.card import write_model_card
    from teenytinyllama.training.config import PretrainConfig
    from teenytinyllama.training.pretrain import pretrain

    values = {**CONFIGS["pretrain"][0], "tokenizer": str(inputs / "tokenizer"), "packed": str(inputs / "packed"),
              "output_dir": str(inputs / "run"), "save_steps": 1, "eval_steps": 1, "lr_scheduler_type": "warmup_stable_decay"}  # fmt: skip
    pretrain(build(PretrainConfig, check_types(PretrainConfig, values)), values)
    write_model_card(inputs / "run")
