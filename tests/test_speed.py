"""The fast ways of computing change the time of a step and nothing else."""

import functools
import itertools
import json
import os
import resource
import sys
import time
import types
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

from teenytinyllama import checks
from teenytinyllama import gpus as hardware
from teenytinyllama.arguments import build, check_types
from teenytinyllama.checks import InputError
from teenytinyllama.evaluation.held_out import window_nats
from teenytinyllama.models import PLAIN_HEADS
from teenytinyllama.planning.memory import LossKind, eval_rows
from teenytinyllama.training import settings as settings_module
from teenytinyllama.training import speed
from teenytinyllama.training import trainer as trainer_module
from teenytinyllama.training.config import PretrainConfig
from teenytinyllama.training.metrics import read_jsonl
from teenytinyllama.training.pretrain import build_run, pretrain
from teenytinyllama.training.run_plan import plan_run
from teenytinyllama.training.speed import chunk_options, fuse_loss, has_chunked_loss
from teenytinyllama.training.trainer import Clock
from teenytinyllama.training.trials import settle_micro_batch
from tests.test_pretrain import losses, make_values

needs_chunks = pytest.mark.skipif(not has_chunked_loss(), reason="torch before 2.13 has no chunked loss")


@pytest.fixture
def values(tmp_path: Path, packed_folder: Path, tokenizer_folder: Path) -> dict[str, Any]:
    return make_values(tmp_path, packed_folder, tokenizer_folder)


def run(values: dict[str, Any], **changes: Any) -> Path:
    values = {**values, **changes}
    return pretrain(build(PretrainConfig, check_types(PretrainConfig, values)), values)


def config(values: dict[str, Any], **changes: Any) -> PretrainConfig:
    return build(PretrainConfig, check_types(PretrainConfig, {**values, **changes}))


def small_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
    )
    return LlamaForCausalLM(shape)


@pytest.fixture(autouse=True)
def quick_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss is traced and differentiated as on a GPU; only the writing of kernels is left out."""
    compile_quickly = functools.partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(speed, "compiled_nats", functools.cache(lambda: compile_quickly(
        functools.partial(speed.nats_from_logits, reduction="sum"))))  # fmt: skip


both_kinds = pytest.mark.parametrize("kind", [pytest.param("chunked", marks=needs_chunks), "compiled"])


@both_kinds
@pytest.mark.parametrize("num_items", [None, 40])
def test_a_fused_loss_is_the_loss(kind: LossKind, num_items: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("teenytinyllama.training.speed.CPU_CHUNK_BYTES", 4 * 300 * 7)  # 7 tokens a chunk
    ids = torch.randint(0, 300, (3, 12))
    labels = ids.clone()
    labels[0, :5], labels[2, -3:] = -100, -100
    models = small_model(), small_model()
    fuse_loss(models[1], kind)
    outputs = [model(input_ids=ids, labels=labels, num_items_in_batch=num_items) for model in models]
    torch.testing.assert_close(outputs[1].loss, outputs[0].loss, rtol=1e-6, atol=1e-6)
    assert outputs[1].logits is None
    for output in outputs:
        output.loss.backward()
    for (name, left), right in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(right.grad, left.grad, rtol=1e-4, atol=1e-6, msg=name)


@both_kinds
def test_evaluation_scores_rows_instead_of_making_logits(kind: LossKind) -> None:
    ids = torch.randint(0, 300, (3, 12))
    labels = ids.clone()
    labels[1, :6] = -100
    plain, chunked = small_model().eval(), small_model().eval()
    fuse_loss(chunked, kind)
    with torch.no_grad():
        expected, found = plain(input_ids=ids, labels=labels), chunked(input_ids=ids, labels=labels)
    torch.testing.assert_close(found.logits, window_nats(expected.logits, labels), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-5, atol=1e-5)


@both_kinds
def test_under_autocast_the_head_computes_in_its_precision(kind: LossKind) -> None:
    ids = torch.randint(0, 300, (2, 40))
    plain, chunked = small_model(), small_model()
    fuse_loss(chunked, kind)
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = plain(input_ids=ids, labels=ids).loss, chunked(input_ids=ids, labels=ids).loss
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)
    exact = small_model()(input_ids=ids, labels=ids).loss
    assert found.item() != exact.item(), "autocast had no effect"


@both_kinds
def test_without_labels_the_model_is_as_it_was(kind: LossKind, tmp_path: Path) -> None:
    ids = torch.randint(0, 300, (1, 6))
    plain, chunked = small_model().eval(), small_model().eval()
    fuse_loss(chunked, kind)
    torch.testing.assert_close(chunked(ids).logits, plain(ids).logits)
    generated = [model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0) for model in (plain, chunked)]
    assert generated[0].tolist() == generated[1].tolist()
    plain.save_pretrained(tmp_path / "plain")
    chunked.save_pretrained(tmp_path / "chunked")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "chunked" / name).read_bytes()


@needs_chunks
def test_chunks_fit_the_vocabulary() -> None:
    assert chunk_options("cpu", 32_000).batch_chunk_size == 500
    assert chunk_options("cpu", 10**9).batch_chunk_size == 1
    assert chunk_options("cuda", 32_000).batch_chunk_size is None  # torch chooses


def test_on_a_gpu_the_loss_is_compiled_with_the_layers(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    otherwise = "chunked" if has_chunked_loss() else "whole"
    assert speed.choose_loss(config(values, compile_layers=True), 1.0, 0)[0] == otherwise, "not on a CPU"
    monkeypatch.setattr(speed, "has_accelerator", lambda: True)
    monkeypatch.setattr(speed, "missing_compiler", lambda: "")
    assert speed.choose_loss(config(values, compile_layers=True), 1.0, 0)[0] == "compiled"
    assert speed.choose_loss(config(values, compile_layers=False), 1.0, 0)[0] == otherwise
    whole = config(values, compile_layers=True, chunked_loss=False)
    assert speed.choose_loss(whole, 1.0, 0) == ("whole", "as configured")
    assert whole.speed_plan(plan_run(whole).model_config, 0).loss == "whole"
    liger = config(values, compile_layers=True)
    liger.use_liger_kernel = True
    assert speed.choose_loss(liger, 1.0, 0) == ("whole", "Liger's")
    assert speed.compiles_layers(liger, 1e30, 0) == (True, "as configured")
    liger.compile_layers = None
    assert speed.compiles_layers(config(values), 1e30, 0)[0]
    assert speed.compiles_layers(liger, 1e30, 0)[0] is False, "slower together"


def test_a_run_is_the_same_with_the_compiled_loss(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    plain = run(values, chunked_loss=False)
    monkeypatch.setattr(speed, "choose_loss", lambda *_: ("compiled", ""))
    compiled = run(values, output_dir=values["output_dir"] + "compiled")
    assert losses(compiled) == pytest.approx(losses(plain), abs=2e-5)
    scores = [
        [r["bits_per_byte"] for r in read_jsonl(f / "metrics.jsonl") if "bits_per_byte" in r] for f in (plain, compiled)
    ]
    assert scores[1] == pytest.approx(scores[0], rel=1e-5)
    assert "loss compiled with the head" in json.loads((compiled / "run.json").read_text())["training"]["speed"]


@needs_chunks
def test_a_run_is_the_same_with_whole_logits(values: dict[str, Any]) -> None:
    folders = [run(values, output_dir=f"{values['output_dir']}{on}", chunked_loss=on) for on in (True, False)]
    first, second = (losses(folder) for folder in folders)
    assert first == pytest.approx(second, abs=2e-5)
    scores = [[r["bits_per_byte"] for r in read_jsonl(f / "metrics.jsonl") if "bits_per_byte" in r] for f in folders]
    assert len(scores[0]) >= 3
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)


@pytest.mark.slow
def test_a_run_is_the_same_with_compiled_layers(values: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    compiled = run(values, output_dir=values["output_dir"] + "compiled", compile_layers=True)
    assert "compile each layer (as configured)" in capfd.readouterr().out
    assert losses(compiled) == pytest.approx(losses(run(values)), abs=2e-5)
    assert sum(torch._dynamo.utils.counters["stats"].values()) > 0, "nothing was compiled"
    LlamaForCausalLM.from_pretrained(compiled)  # names of weights are those of a plain Llama


class CountSyncs(TorchDispatchMode):
    """Count the operations that make the host wait for a device."""

    WAITING = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default,
               torch.ops.aten.equal.default, torch.ops.aten.nonzero.default}  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        if func in self.WAITING:
            self.found[str(func)] += 1
        return func(*args, **(kwargs or {}))


class Watch(TrainerCallback):
    """Hold the counting mode over steps 3 and 4, of four micro-batches each, between two log lines."""

    def __init__(self) -> None:
        self.mode = CountSyncs()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            self.mode.__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 4:
            self.mode.__exit__(None, None, None)


@pytest.mark.parametrize("nan_filter", [False, True])
def test_no_micro_batch_makes_the_host_wait(values: dict[str, Any], nan_filter: bool) -> None:
    made = config(values, logging_steps=100, per_device_train_batch_size=2, eval_strategy="no", save_strategy="no",
                  logging_nan_inf_filter=nan_filter)  # fmt: skip
    built = build_run(made, plan_run(made))
    watch = Watch()
    built.trainer.add_callback(watch)
    try:
        built.trainer.train()
    finally:
        built.energy.stop()
        built.stop.restore_handlers()
    assert watch.mode.calls > 500
    assert bool(watch.mode.found) == nan_filter, watch.mode.found  # the Trainer's filter is what would be seen


def test_scored_tokens_are_known_without_counting(values: dict[str, Any]) -> None:
    made = config(values, per_device_train_batch_size=2)
    trainer = build_run(made, plan_run(made)).trainer
    loader = trainer.get_train_dataloader()
    batches, known = trainer.get_batch_samples(iter(loader), 4, torch.device("cpu"))
    assert [tuple(batch["input_ids"].shape) for batch in batches] == [(2, 32)] * 4
    assert known == int(trainer._get_num_items_in_batch(batches, torch.device("cpu"))) == 8 * 31
    assert trainer.clock.seconds["data"] > 0


def test_a_layer_under_ddp_is_compiled_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buckets as small as its weights are what torch would cut it at."""
    graphs = []

    def compile_graph(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=compile_graph))
    torch.compiler.reset()
    shape = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(**shape, num_hidden_layers=2))
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        with torch._dynamo.config.patch(optimize_ddp=True):  # undone after it; monkeypatch would delete it
            speed.apply_speed(model, speed.SpeedPlan("whole", True, {}))
            ids = torch.randint(0, 64, (2, 16))
            ranks = torch.nn.parallel.DistributedDataParallel(model, bucket_cap_mb=0.01)
            ranks(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    finally:
        # gloo's threads drop what they reduced, which takes the interpreter's lock; who destroys the group while they
        # do, holds that lock and waits for them for ever.
        time.sleep(0.5)
        ranks = None
        torch.distributed.destroy_process_group()
    assert len(graphs) == 1


def test_what_waits_in_a_gpu_s_queue_counts_as_training(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """With a queue that takes a second after the evaluated step, its speed is under a step a second."""
    waited: list[float] = []

    def wait() -> None:
        waited.append(1.0)
        time.sleep(1.0)

    monkeypatch.setattr(trainer_module, "wait_for_gpu", wait)
    monkeypatch.setattr("teenytinyllama.training.metrics.plot_loss", lambda *_: None)  # its imports take seconds
    made = config(values, logging_steps=4, eval_steps=3, max_tokens=4 * 256, save_strategy="no")
    folder = pretrain(made, {})
    trained = [record for record in read_jsonl(folder / "metrics.jsonl") if "loss" in record]
    assert [record["step"] for record in trained] == [1, 4]
    assert trained[1]["tokens_per_second"] < 3 * 256 / 2, "two waits, of the evaluation and of the log"
    assert len(waited) == 3
    parts = json.loads((folder / "run.json").read_text())["training"]["seconds_by_part_of_last_start"]
    assert parts["training"] > 3 > parts["callbacks"]


def test_an_evaluation_takes_the_rows_of_training_unless_its_logits_are_too_many(values: dict[str, Any]) -> None:
    assert eval_rows(64, 2048, 32_000, whole_logits=False) == 64
    assert eval_rows(64, 2048, 32_000, whole_logits=True) == 5
    assert eval_rows(4, 2048, 32_000, whole_logits=True) == 4
    assert eval_rows(4, 100_000, 256_000, whole_logits=True) == 1
    made = config(values, per_device_train_batch_size=2)
    settle_micro_batch(made, plan_run(made))
    assert made.eval_batch_size == 2
    made = config(values, per_device_train_batch_size=2, per_device_eval_batch_size=3)
    settle_micro_batch(made, plan_run(made))
    assert made.eval_batch_size == 3


def test_time_counts_once() -> None:
    clock = Clock()
    with clock.part("outer"):
        with clock.part("inner"):
            sum(range(200_000))
        with clock.part("inner"):
            sum(range(200_000))
    assert clock.seconds["inner"] > 10 * clock.seconds["outer"] > 0

    class Busy(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            sum(range(100_000))

    busy = clock.watch(Busy(), "busy")
    busy.on_step_end(None, None, None)  # not its own method
    assert "busy" not in clock.seconds
    busy.on_log(None, None, None)
    assert clock.seconds["busy"] > 0


def test_compiling_waits_for_a_run_that_pays(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "peak_flops", lambda device: (1e10, "test"))
    short = speed.plan_speed(config(values), 1e10, 0)
    assert not short.compile_layers
    assert short.reasons["compile"] == "about 3 s of training, too short to pay for it"
    assert speed.plan_speed(config(values), 1e14, 0).compile_layers
    assert not speed.plan_speed(config(values), 1e12, 0).compile_layers, "333 s are too short on a CPU"
    monkeypatch.setattr(speed, "has_accelerator", lambda: True)
    monkeypatch.setattr(speed, "missing_compiler", lambda: "")
    assert speed.plan_speed(config(values), 1e12, 0).compile_layers, "and long enough on a GPU"
    assert speed.plan_speed(config(values, compile_layers=False), 1e14, 0).compile_layers is False
    zero3 = speed.plan_speed(config(values), 1e14, 3)
    assert not zero3.compile_layers
    assert zero3.loss == "whole"
    monkeypatch.setattr(speed, "missing_compiler", lambda: "a C++ compiler (g++)")
    assert speed.plan_speed(config(values), 1e14, 0).reasons["compile"] == "a C++ compiler (g++) is missing"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attn_implementation": "flash"}, r"attn_implementation=flash: must be one of sdpa, eager, flash_attention_2"),
        ({"attn_implementation": "flash_attention_2"}, r"attn_implementation=flash_attention_2: needs an NVIDIA or AMD"),
        ({"attn_implementation": "flash_attention_3"}, r"attn_implementation=flash_attention_3: needs .*Use sdpa"),
        ({"use_liger_kernel": True}, r"use_liger_kernel=true: needs an NVIDIA or AMD GPU, and torch sees none. Leave it"),
        ({"torch_compile": True}, r"torch_compile=True: .*Set compile_layers"),
    ],
)  # fmt: skip
def test_refusals(values: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        config(values, **changes)


def test_refusals_on_a_gpu_without_the_packages(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(InputError, match=r"attn_implementation=flash_attention_2: .* pip install flash-attn. Or: Use"):
        config(values, attn_implementation="flash_attention_2")
    with pytest.raises(InputError, match=r"use_liger_kernel=true: .* pip install liger-kernel"):
        config(values, use_liger_kernel=True)
    monkeypatch.setattr(speed.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(InputError, match=r"chunked_loss=true, use_liger_kernel=true: Liger brings a fused loss"):
        config(values, use_liger_kernel=True, chunked_loss=True)


def test_refusals_of_an_old_or_bare_machine(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "has_chunked_loss", lambda: False)
    with pytest.raises(InputError, match=r"chunked_loss=true: needs torch 2.13 or newer"):
        config(values, chunked_loss=True)
    assert speed.plan_speed(config(values), 1.0, 0).loss == "whole"
    monkeypatch.setenv("PATH", os.devnull)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(InputError, match=r"compile_layers=true: torch needs a C\+\+ compiler \(g\+\+\) to compile"):
        config(values, compile_layers=True)


def test_flash_attention_reaches_the_model(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "_check_gpu_switch", lambda *_: None)
    monkeypatch.setattr(LlamaForCausalLM, "_flash_attn_can_dispatch", lambda *_, **__: True)
    monkeypatch.setitem(sys.modules, "flash_attn", types.ModuleType("flash_attn"))
    monkeypatch.setattr("transformers.modeling_utils.lazy_import_flash_attention", lambda *_, **__: None)
    made = config(values, attn_implementation="flash_attention_2")
    assert build_run(made, plan_run(made)).trainer.model.config._attn_implementation == "flash_attention_2"


def test_liger_reaches_the_trainer(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "_check_gpu_switch", lambda *_: None)
    applied: list[Any] = []
    monkeypatch.setattr(transformers.trainer, "apply_liger_kernel", lambda model, kernels: applied.append(kernels))
    kernels = {"fused_linear_cross_entropy": True, "rope": False}
    folder = run(values, use_liger_kernel=True, liger_kernel_config=kernels)
    assert applied == [kernels]
    assert "whole logits (Liger's)" in json.loads((folder / "run.json").read_text())["training"]["speed"]


def test_copies_to_a_gpu_do_not_block(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings_module, "has_accelerator", lambda: True)
    monkeypatch.setattr(settings_module, "has_pinned_memory", lambda: True)
    assert config(values).accelerator_config.non_blocking is True
    assert config(values, accelerator_config={"non_blocking": False}).accelerator_config.non_blocking is False


@pytest.mark.parametrize("kind", sorted(PLAIN_HEADS))
def test_a_plain_head_s_loss_is_the_model_s_own(kind: str) -> None:
    shape = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(kind, **shape))
    ids = torch.randint(0, 64, (2, 16))
    plain = model(input_ids=ids, labels=ids, use_cache=False).loss
    fuse_loss(model.train(), "chunked" if has_chunked_loss() else "compiled")
    assert model(input_ids=ids, labels=ids).loss.item() == pytest.approx(plain.item(), abs=1e-5)


def test_a_head_that_does_more_keeps_its_own_loss(values: dict[str, Any]) -> None:
    from teenytinyllama.tuning.config import SftConfig

    made = config(values)
    for kind, loss in (("llama", "chunked" if has_chunked_loss() else "whole"), ("gemma2", "whole"), ("phi", "whole")):
        shape = transformers.AutoConfig.for_model(kind)
        assert SftConfig.speed_plan(made, shape, 0).loss == loss  # type: ignore[arg-type]
    found = speed.plan_speed(made, 1e10, 0, plain_head=False)
    assert (found.loss, found.reasons["loss"]) == (
        "whole",
        "the logits of this model are not a plain product of its head",
    )


# What the machine offers.


def test_a_peak_that_no_table_has_is_measured_once_and_draws_nothing() -> None:
    before = torch.get_rng_state()
    flops, source = hardware.peak_flops("a processor")
    assert 1e8 < flops < 1e14
    assert source == "measured: float32 product of 1024 x 1024 matrices"
    assert hardware.peak_flops("another") == (flops, source), "not measured again"
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("worked", "cores", "seconds"), [(0.02, 8, 0.01), (0.3, 8, 0.1), (0.0, 8, 0.1), (0.02, 1, 0.02)]
)
def test_the_peak_of_a_processor_leaves_out_what_other_programs_took(
    monkeypatch: pytest.MonkeyPatch, worked: float, cores: int, seconds: float
) -> None:
    """One product, in a tenth of a second by the clock, for which two threads worked so long; 0: too short to tell."""
    monkeypatch.setattr(hardware, "available_cores", lambda: cores)
    clock, process = itertools.count(), iter([0.0, worked])
    times = types.SimpleNamespace(perf_counter=lambda: next(clock) / 10, process_time=lambda: next(process))
    monkeypatch.setattr(hardware, "time", times)
    assert hardware._measured_peak_flops.__wrapped__(2, "cpu")[0] == pytest.approx(2 * 1024**3 / seconds)


@pytest.mark.parametrize(("quota", "cores"), [("max 100000", 8), ("150000 100000", 2), ("20000 100000", 1), ("", 8)])
def test_a_container_s_quota_limits_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, cores: int
) -> None:
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    monkeypatch.setattr(checks, "_CPU_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    assert checks.available_cores() == cores


def test_the_peak_of_memory_is_in_gigabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux counts in KiB, macOS in bytes."""
    usage = types.SimpleNamespace(ru_maxrss=2_000_000)
    monkeypatch.setattr(resource, "getrusage", lambda who: usage)
    monkeypatch.setattr(hardware.sys, "platform", "linux")
    assert hardware.peak_memory_gb() == 2.048
    monkeypatch.setattr(hardware.sys, "platform", "darwin")
    assert hardware.peak_memory_gb() == 0.002
