"""The bench and the rule of caches: engines write the same text, the table holds what was measured, refusals come first."""

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import other_tool
from test_chat import tiny_model

from teenytinyllama.arguments import parse
from teenytinyllama.chat import generation
from teenytinyllama.chat.generation import Reply, Sampling, choose_cache, encode_prompts, generate_ids
from teenytinyllama.checks import InputError, RunFailedError
from teenytinyllama.cli import main
from teenytinyllama.energy.meter import EnergyReading
from teenytinyllama.export import bench, engines
from teenytinyllama.export.bench import BenchConfig, first_difference, render_bench, run_bench
from teenytinyllama.export.engines import LLAMA_CPP, EngineProcess, EngineSpec, Written, _make_transformers, _timed
from teenytinyllama.models import load_tokenizer

PROMPTS = [[1, *range(20, 35)], [1, *range(60, 75)], [1, *range(130, 145)]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """A tiny model whose likeliest token is soon the end token, and its tokenizer."""
    tokenizer = load_tokenizer("tokenizer", str(tokenizer_folder))
    model = tiny_model(tokenizer)
    with torch.no_grad():
        for weight in model.parameters():  # large enough for text that is no single token again and again
            weight.mul_(8 if weight.ndim == 2 else 1)
    path = tmp_path_factory.mktemp("bench") / "model"
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def spec(engine: str, model: object, **more: Any) -> EngineSpec:
    return EngineSpec(engine, str(model), PROMPTS, 20, **more)


def written_by(engine: str, folder: Path) -> Written:
    write, device = _make_transformers(spec(engine, folder, use_cpu=True))
    assert device == "processor, float32"
    return _timed(write, PROMPTS)


# --- the engines


def test_engines_of_transformers_write_the_same_text(folder: Path) -> None:
    found = {engine: written_by(engine, folder) for engine in ("dynamic", "static", "continuous")}
    assert [len(ids) for ids in found["dynamic"].ids] == [20, 20, 20]
    assert len({tuple(ids) for ids in found["dynamic"].ids}) == 3
    for written in found.values():
        assert written.ids == found["dynamic"].ids
        assert 0 < written.first_seconds < written.seconds
        assert written.peak_bytes > 50e6


def test_an_end_token_ends_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ids = written_by("dynamic", folder).ids
    (tmp_path / "m").mkdir()
    for path in folder.iterdir():
        (tmp_path / "m" / path.name).write_bytes(path.read_bytes())
    for name in ("config.json", "generation_config.json"):
        content = json.loads((folder / name).read_text())
        (tmp_path / "m" / name).write_text(json.dumps({**content, "eos_token_id": ids[0][3]}))
    for engine in ("dynamic", "continuous"):
        assert written_by(engine, tmp_path / "m").ids == ids


def test_the_dtype_is_the_one_asked_for(folder: Path) -> None:
    _, device = _make_transformers(spec("dynamic", folder, use_cpu=True, dtype="bfloat16"))
    assert device == "processor, bfloat16"


def program(tmp_path: Path, text: str) -> str:
    path = tmp_path / "program"
    path.write_text(f"#!/bin/sh\nread line\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_a_process_that_ends_says_its_last_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines.sys, "executable", program(tmp_path, "echo boom >&2; exit 3"))
    with pytest.raises(RunFailedError, match="its process ended with exit code 3: boom"):
        EngineProcess(spec("dynamic", "m"), tmp_path / "log")
    monkeypatch.setattr(engines.sys, "executable", program(tmp_path, "exit 4"))
    with pytest.raises(RunFailedError, match="exit code 4: it printed nothing"):
        EngineProcess(spec("dynamic", "m"), tmp_path / "log")


def test_a_process_may_refuse_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines.sys, "executable", program(tmp_path, """echo '{"refused": "m: no such model"}'"""))
    with pytest.raises(InputError, match="m: no such model"):
        EngineProcess(spec("dynamic", "m"), tmp_path / "log")


# --- the bench, with engines in this process


class FakeEngine:
    """An engine that writes at a fixed speed; `broken` ends when it is asked to write."""

    def __init__(self, given: EngineSpec) -> None:
        self.spec, self.about = given, {"device": "processor, float32", "load_seconds": 1.5}
        self.batch, self.written = 0, 0

    def set_batch(self, batch: int) -> float:
        self.batch = batch
        return 2.5

    def write(self) -> Written:
        if self.spec.engine == "continuous":
            raise RunFailedError("its process ended with exit code 1: no memory")
        self.written += 1
        ids = [list(range(self.spec.new_tokens)) for _ in range(self.batch)]
        if self.spec.engine == LLAMA_CPP:
            ids[0][4] = 999
        return Written(ids, 0.5 * self.batch, 0.5 * self.batch + 0.1 * self.written, 30_000_000)


class FakeRecorder:
    """A meter that counts 0.001 kWh between two readings."""

    failure = ""

    def __init__(self, *_: Any) -> None:
        self.kwh = 0.0

    def write(self, last: bool = False) -> EnergyReading:
        self.kwh += 0.001
        return EnergyReading(self.kwh, 0, 0, 0, 0, 0)


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def started(given: EngineSpec, log: Path) -> Any:
        yield FakeEngine(given)

    monkeypatch.setattr(bench, "started_engine", started)
    monkeypatch.setattr(bench, "Recorder", FakeRecorder)
    monkeypatch.setattr(bench, "LEAST_METERED_SECONDS", 0)


def config_of(tmp_path: Path, **keys: Any) -> BenchConfig:
    values = {"prompt_tokens": 16, "new_tokens": 11, "batch_sizes": [4, 1], "repeats": 3, "answers": 4}
    return BenchConfig(output_dir=str(tmp_path / "out"), **{**values, **keys})


@pytest.mark.usefixtures("faked")
def test_the_table_holds_what_was_measured(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = run_bench(config_of(tmp_path, engines=["dynamic", "continuous"]), [str(folder)])
    assert sorted(path.name for path in output.iterdir()) == ["bench.json", "bench.md", "run.json"]
    content = json.loads((output / "bench.json").read_text())
    assert [(case["engine"], case["batch"]) for case in content["cases"]] == [("dynamic", 1), ("dynamic", 4)]
    one, four = content["cases"]
    # The second of three writings took 0.2 s behind the prompt, for 10 tokens.
    assert one["new_tokens_per_second"] == pytest.approx({"median": 50, "least": 10 / 0.3, "most": 100})
    assert one["first_token_seconds"]["median"] == pytest.approx(0.5)
    assert one["prompt_tokens_per_second"]["median"] == pytest.approx(32)
    assert four["prompt_tokens_per_second"]["median"] == pytest.approx(32)
    assert (one["warm_up_seconds"], one["load_seconds"], one["peak_mb"]) == (2.5, 1.5, 30)
    assert one["wh_per_thousand"] == pytest.approx(250)  # 1 Wh for 4 answers
    assert content["failed"] == {"continuous": "its process ended with exit code 1: no memory"}
    table = (output / "bench.md").read_text()
    assert "| dynamic | 1 | 32 | 50.0 | 33.3 to 100.0 | 0.500 | 2.5 | 30 |" in table
    assert "continuous was left out: its process ended with exit code 1: no memory" in table
    assert "| yes |" in table
    case = {**four, "differs_from": 5}
    assert "| differs from token 5 |" in render_bench({**content, "cases": [case]})
    assert table in capsys.readouterr().out
    run_bench(config_of(tmp_path, engines=["dynamic", "continuous"]), [str(folder)])
    assert "holds these measurements already" in capsys.readouterr().out
    (output / "run.json").unlink()  # as a kill in the last moment leaves it
    (output / "emissions.csv").write_text("")
    run_bench(config_of(tmp_path, engines=["dynamic", "continuous"]), [str(folder)])
    assert (output / "run.json").is_file()
    assert (output / "emissions.csv").is_file()
    with pytest.raises(InputError, match="holds measurements of other inputs or settings"):
        run_bench(config_of(tmp_path, engines=["dynamic"]), [str(folder)])


@pytest.mark.usefixtures("faked")
def test_no_engine_left_is_a_failure(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RunFailedError, match="no engine could write: continuous: its process ended"):
        run_bench(config_of(tmp_path, engines=["continuous"]), [str(folder)])


def test_first_difference() -> None:
    assert first_difference([[1, 2], [3, 4]], [[1, 2], [3, 4]]) is None
    assert first_difference([[1, 2], [3, 4]], [[1, 9], [8, 4]]) == 1


def test_prompts_are_different_real_texts_of_one_length(tokenizer_folder: Path) -> None:
    tokenizer = load_tokenizer("tokenizer", str(tokenizer_folder))
    prompts = bench.real_prompts(tokenizer, 30, 5)
    assert [len(prompt) for prompt in prompts] == [30] * 5
    assert len({tuple(prompt) for prompt in prompts}) == 5
    assert {prompt[0] for prompt in prompts} == {tokenizer.bos_token_id}
    assert " " in tokenizer.decode(prompts[3])


# --- refusals


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"prompt_tokens": 1}, "prompt_tokens=1: must lie between 2 and 100,000"),
        ({"new_tokens": 1}, "new_tokens=1: must lie between 2"),
        ({"repeats": 0}, "repeats=0: must lie between 1"),
        ({"answers": 0}, "answers=0: must lie between 1"),
        ({"batch_sizes": []}, "batch_sizes=\\[\\]: empty"),
        ({"batch_sizes": [1, 0]}, "batch_sizes=0: must lie between 1 and 1,024"),
        ({"engines": []}, "engines=\\[\\]: empty"),
        ({"threads": 10_000}, "threads=10000: must lie between 1 and"),
        ({"country_iso_code": "XXX"}, "country_iso_code=XXX"),
    ],
)
def test_settings_are_refused(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        config_of(tmp_path, **keys)


def test_one_batch_size_may_be_given_alone(tmp_path: Path) -> None:
    words = ["--output_dir", str(tmp_path), "--batch_sizes"]
    assert parse(BenchConfig, [*words, "4"]).sizes == [4]
    assert parse(BenchConfig, [*words, "8", "2", "2"]).sizes == [2, 8]


def test_models_and_files_are_refused_before_work(folder: Path, tmp_path: Path) -> None:
    words, model = tmp_path / "words.gguf", str(folder)
    (tmp_path / "a").mkdir()
    other = tmp_path / "a" / "words.gguf"
    for path in (words, other):
        path.write_text("no file of a model")
    for given, keys, message in (
        (["x.gguf"], {}, "x.gguf: give the model first: ttl bench MODEL x.gguf"),
        ([model, "none.gguf"], {}, "FILE.gguf=none.gguf: no such file or folder. `ttl export MODEL"),
        ([model, model], {}, "is no file. Give a GGUF file"),
        ([str(tmp_path / "none")], {}, "none"),
        ([model], {"new_tokens": 120}, "136 tokens, and the model's context has 128"),
        ([model], {"engines": ["graphs"]}, "engines=graphs: needs an NVIDIA or AMD GPU"),
        ([model], {"output_dir": str(words)}, "is a file"),
    ):
        with pytest.raises(InputError, match=message):
            run_bench(BenchConfig(**{**vars(config_of(tmp_path)), **keys}), given)
    other_tool("llama_cpp")
    for given, message in (([model, str(words), str(other)], "two files of one name"),
                           ([model, str(words)], "is no whole GGUF file of a model")):  # fmt: skip
        with pytest.raises(InputError, match=message):
            run_bench(config_of(tmp_path), given)
    assert not (tmp_path / "out").exists()


def test_the_command_needs_a_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["bench", "--output_dir", str(tmp_path / "out")]) == 2
    assert "ttl bench: needs a model" in capsys.readouterr().err


# --- llama.cpp


def write_gguf_file(folder: Path, path: Path, layers: int | None = None) -> Path:
    """Write a Llama of ours as GGUF in float32, as llama.cpp's converter does it: queries and keys in its order."""
    gguf = other_tool("gguf")
    from safetensors.numpy import load_file

    config = json.loads((folder / "config.json").read_text())
    heads, width = config["num_attention_heads"], config["hidden_size"]
    vocabulary = gguf.SentencePieceVocab(folder)
    pieces, scores, kinds = zip(*vocabulary.all_tokens(), strict=True)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(width)
    writer.add_block_count(layers or config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(width // heads)
    writer.add_tokenizer_model(vocabulary.tokenizer_model)
    writer.add_tokenizer_pre("default")
    writer.add_token_list(pieces)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, values in load_file(folder / "model.safetensors").items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            values = values.reshape(heads, 2, -1, width).swapaxes(1, 2).reshape(values.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.other_tools
def test_llama_cpp_writes_the_same_text(folder: Path, tmp_path: Path) -> None:
    path = write_gguf_file(folder, tmp_path / "model-F32.gguf")
    other_tool("llama_cpp")
    write, device = engines._make_llama_cpp(spec(LLAMA_CPP, path))
    assert device == "processor"
    expected = written_by("dynamic", folder).ids
    for prompt, ids in zip(PROMPTS, expected, strict=True):
        written = _timed(write, [prompt])
        # Keys and values in float16 may turn a near tie; the first tokens are no such ties.
        assert written.ids[0][:8] == ids[:8]
        assert len(written.ids[0]) == 20
        assert 0 < written.first_seconds < written.seconds


@pytest.mark.other_tools
def test_a_gguf_file_must_be_of_the_model(folder: Path, tmp_path: Path) -> None:
    path = write_gguf_file(folder, tmp_path / "other.gguf", layers=7)
    with pytest.raises(InputError, match="has 7 layers and 600 tokens, and the model 2 and 600"):
        run_bench(config_of(tmp_path), [str(folder), str(path)])


@pytest.mark.slow
@pytest.mark.other_tools
def test_the_command_with_engines_in_their_processes(folder: Path, tmp_path: Path) -> None:
    path = write_gguf_file(folder, tmp_path / "model-F32.gguf")
    command = ["bench", str(folder), str(path), "--output_dir", str(tmp_path / "out"), "--prompt_tokens", "16"]
    command += ["--new_tokens", "12", "--engines", "dynamic", "static", "--repeats", "2", "--batch_sizes", "2"]
    assert main([*command, "--threads", "1"]) == 0
    content = json.loads((tmp_path / "out" / "bench.json").read_text())
    cases = {(case["engine"], case["batch"]): case for case in content["cases"]}
    assert list(cases) == [(f"{LLAMA_CPP} {path.name}", 1), ("dynamic", 2), ("static", 2)]
    assert cases["static", 2]["differs_from"] is None
    for case in cases.values():
        assert case["new_tokens_per_second"]["median"] > 0
        assert case["wh_per_thousand"] > 0
    assert cases["dynamic", 2]["peak_mb"] > 2 * cases[f"{LLAMA_CPP} {path.name}", 1]["peak_mb"]
    assert "model of its size" in " ".join(content["energy"]["warnings"])
    assert {"emissions.csv", "ledger.jsonl", "run.json"} <= {path.name for path in (tmp_path / "out").iterdir()}


# --- the cache that ttl chooses


def with_cache(monkeypatch: pytest.MonkeyPatch, cache: str) -> None:
    def chosen(model: Any, batch: int, steps: int) -> dict[str, Any]:
        return {**generation.cache_arguments(cache, "cpu"), **({} if cache == "dynamic" else {"max_cache_len": 128})}

    monkeypatch.setattr(generation, "choose_cache", chosen)


@pytest.mark.parametrize(("temperature", "penalty"), [(0, 1.0), (0, 1.2), (0.8, 1.0), (1.5, 1.2)])
def test_both_caches_write_the_same_text(
    folder: Path, monkeypatch: pytest.MonkeyPatch, temperature: float, penalty: float
) -> None:
    from teenytinyllama import from_pretrained

    model, tokenizer = from_pretrained(folder)
    rows = encode_prompts(tokenizer, ["Era uma vez", "A menina viu o cachorro no quintal", "O"])
    found = []
    for cache in ("dynamic", "static"):
        with_cache(monkeypatch, cache)
        found.append(generate_ids(model, tokenizer, rows, 30, 7, temperature, penalty, calls=1))
    assert found[0] == found[1]
    assert max(len(one.ids) for one in found[0]) > 5


def gpu_model(context: int = 2048) -> Any:
    shape = {"num_hidden_layers": 12, "num_attention_heads": 12, "num_key_value_heads": 12, "hidden_size": 768}
    return SimpleNamespace(device=torch.device("cuda"), dtype=torch.bfloat16,
                           config=SimpleNamespace(max_position_embeddings=context, **shape))  # fmt: skip


def test_the_cache_is_chosen_by_device_steps_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (40e9, 80e9))
    many = generation._COMPILED_PAYS_FROM_STEPS
    assert choose_cache(gpu_model(), 32, many - 1) == {}
    chosen = choose_cache(gpu_model(), 32, many)
    assert chosen["cache_implementation"] == "static"
    assert chosen["max_cache_len"] == 2048  # whatever the prompts' lengths are: nothing is compiled twice
    assert chosen["compile_config"] == choose_cache(gpu_model(), 32, many)["compile_config"]
    # 12 layers of 768 keys and values in two bytes are 36,864 bytes a token: 2.4 GB for 32 texts, 38.7 GB for 512.
    assert generation._cache_bytes_per_token(gpu_model().config, 2) == 36_864
    assert choose_cache(gpu_model(), 512, many) == {}
    assert choose_cache(SimpleNamespace(device=torch.device("cpu")), 32, 10**9) == {}  # type: ignore[arg-type]


def test_trainings_and_chats_never_compile(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from teenytinyllama import from_pretrained

    model, tokenizer = from_pretrained(folder)
    asked: list[int] = []

    def choose(model: Any, batch: int, steps: int) -> dict[str, Any]:
        asked.append(steps)
        return {}

    monkeypatch.setattr(generation, "choose_cache", choose)
    generation.generate_texts(model, tokenizer, ["Era"], 8, seed=0)  # a training's samples
    assert asked == [0]
    "".join(Reply(model, tokenizer, [1, 20], Sampling(max_new_tokens=4)))
    assert asked == [0]
    generate_ids(model, tokenizer, [[1, 20]], 500, seed=0, temperature=0, calls=3)
    assert asked == [0, 3 * 126]  # the context of 128 has room for so many


def test_evaluation_guesses_the_steps_from_the_batches_before(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    harness = pytest.importorskip("teenytinyllama.evaluation.harness")
    from lm_eval.api.instance import Instance

    from teenytinyllama import from_pretrained

    model, tokenizer = from_pretrained(folder)
    asked: list[tuple[int, int]] = []

    def choose(model: Any, batch: int, steps: int) -> dict[str, Any]:
        asked.append((batch, steps))
        return {}

    monkeypatch.setattr(harness, "choose_cache", choose)
    wrapped = harness.HarnessModel(model, tokenizer, 2)
    kwargs = {"until": ["\n\n\n"], "do_sample": False, "temperature": 0.0, "max_gen_toks": 6}
    requests = [Instance("generate_until", {}, (text, dict(kwargs)), index, metadata=("task", index, 1))
                for index, text in enumerate(["Era uma vez", "A menina", "O rei", "O mar", "Um dia"])]  # fmt: skip
    written = wrapped.generate_until(requests)
    assert len(written) == 5
    steps = wrapped._steps_written // wrapped._batches_written
    assert asked[0] == (2, 0)  # nothing is known yet
    assert asked[1][0] == 2
    assert asked[1][1] in (2 * steps, 2 * 6)  # two batches are left
    assert asked[2] == (1, 0)  # a batch of another size is not worth it


@pytest.mark.slow
def test_other_lengths_compile_nothing_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.utils import counters
    from transformers import CompileConfig

    from teenytinyllama import from_pretrained

    model, tokenizer = from_pretrained(folder)

    def choose(model: Any, batch: int, steps: int) -> dict[str, Any]:
        # As `choose_cache` on a GPU, but traced only: generating code would take a minute here.
        config = CompileConfig(backend="eager", mode="default")
        config._compile_all_devices = True  # type: ignore[assignment]
        return {"cache_implementation": "static", "compile_config": config, "max_cache_len": 128} if steps else {}

    monkeypatch.setattr(generation, "choose_cache", choose)
    torch.compiler.reset()
    before = counters["stats"]["unique_graphs"]
    for lengths in ((5, 9), (9, 9), (50, 3), (31, 31), (7, 20)):  # with padding and without
        rows = [list(range(20, 20 + length)) for length in lengths]
        compiled, usual = (generate_ids(model, tokenizer, rows, 20, 0, 0.0, calls=calls) for calls in (1, 0))
        assert compiled == usual
        assert counters["stats"]["unique_graphs"] == before + 1
