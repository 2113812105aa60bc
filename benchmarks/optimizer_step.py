"""What the optimizer takes of a training step: AdamW, Muon and NorMuon on the same model, in turn, in the same run.

    python benchmarks/optimizer_step.py --preset 160m --rows 32 --tokens_per_step 262144
    torchrun --nproc_per_node 2 benchmarks/optimizer_step.py --preset 160m --rows 32 --tokens_per_step 262144

One model on random rows, on a GPU in bfloat16 by autocast with compiled layers and head, on a CPU in float32. The
forward and backward passes of a micro-batch are timed, and each optimizer's step with the gradients that they leave; a
step of so many tokens is as many micro-batches as it holds, and one step of the optimizer. Several processes share the
tokens and the orthogonalisation as under DDP, whose own reduction of gradients is not timed. Medians; the share that
the clipping of gradients takes is not in them. State and (on a GPU) the working memory of a step are torch's own count,
beside what `planning/memory.py` says.
"""

import json
import time
from collections.abc import Callable
from typing import Any

from bare_loop import apply_choices, loss_function
from common import median, parser, print_table, write_results

NAMES = ("adamw", "muon", "normuon")


def build(arguments: Any, device: Any) -> tuple[Any, Callable[[], None]]:
    """Return the model, and what computes a micro-batch of it."""
    import torch
    from transformers import LlamaForCausalLM

    from teenytinyllama.presets import preset_config

    config = preset_config(arguments.preset)
    for name, value in json.loads(arguments.shape).items():
        setattr(config, name, value)
    config.head_dim = config.hidden_size // config.num_attention_heads
    context = arguments.context or config.max_position_embeddings
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(device).train()
    choices = ["layers", "head"] if device.type == "cuda" else []
    apply_choices(model, choices)
    loss_of = loss_function(model, choices)
    ids = torch.randint(0, config.vocab_size, (arguments.rows, context), device=device)

    def compute() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = loss_of(ids)
        loss.backward()

    return model, compute


def optimizers(model: Any) -> dict[str, Any]:
    """Return the optimizers by name, all of the same model; their rates are so low that nothing is learnt."""
    from types import SimpleNamespace

    import torch

    from teenytinyllama.training.optimizer import MuonAdamW, parameter_groups

    settings = {"learning_rate": 1e-9, "embedding_learning_rate": None, "weight_decay": 0.1, "adam_beta1": 0.9,
                "adam_beta2": 0.95, "adam_epsilon": 1e-8}  # fmt: skip
    made: dict[str, Any] = {"adamw": torch.optim.AdamW(model.parameters(), lr=1e-9, weight_decay=0.1, fused=True)}
    for name in NAMES[1:]:
        made[name] = MuonAdamW(parameter_groups(model, SimpleNamespace(optimizer=name, **settings)))
    return made


def seconds_of(work: Callable[[], Any], device: Any) -> float:
    """Return the wall time of a call and of what it left a GPU to do."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(arguments: Any, device: Any) -> dict[str, Any]:
    """Return the seconds of micro-batches and of each optimizer's steps, and the bytes of states and steps."""
    import torch

    model, compute = build(arguments, device)
    made = optimizers(model)
    seconds: dict[str, list[float]] = {name: [] for name in ("micro-batch", *made)}
    working: dict[str, int | None] = dict.fromkeys(made)
    for number in range(arguments.repeats + 1):
        taken = {"micro-batch": min(seconds_of(compute, device) for _ in range(3))}
        for name, optimizer in made.items():
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            taken[name] = min(seconds_of(optimizer.step, device) for _ in range(1 if number == 0 else 3))
            if device.type == "cuda" and number:
                working[name] = torch.cuda.max_memory_allocated() - before
        model.zero_grad(set_to_none=False)
        if number:  # the first makes states and compiles
            for name, value in taken.items():
                seconds[name].append(value)
    state = {name: sum(tensor.nbytes for kept in optimizer.state.values() for tensor in kept.values())
             for name, optimizer in made.items()}  # fmt: skip
    return {"seconds": seconds, "state_bytes": state, "working_bytes": working, "config": model.config}


def show(found: dict[str, Any], arguments: Any, ranks: int, device: Any) -> dict[str, float]:
    """Print the table, and return each optimizer's share of a step."""
    from teenytinyllama.planning.memory import Computation, memory_need, optimizer_bytes

    config = found["config"]
    context = arguments.context or config.max_position_embeddings
    micro_batches = arguments.tokens_per_step / (arguments.rows * context * ranks)
    passes = micro_batches * median(found["seconds"]["micro-batch"])
    rows, shares = [], {}
    for name in NAMES:
        step = median(found["seconds"][name])
        shares[name] = step / (step + passes)
        how = Computation(world_size=ranks, on_gpu=device.type == "cuda", optimizer=name)
        sizes = [found["state_bytes"][name], optimizer_bytes(config, name),
                 found["working_bytes"][name], memory_need(config, context, how).step_bytes]  # fmt: skip
        rows.append([name, 1e3 * step, f"{100 * shares[name]:.2f} %", arguments.tokens_per_step / (step + passes),
                     *(None if size is None else f"{size / 1e6:,.1f}" for size in sizes)])  # fmt: skip
    shape = f"{arguments.preset}, {config.num_hidden_layers} layers x {config.hidden_size}"
    rows_each = f"{arguments.rows} rows of {context:,} on each of {ranks} {device.type}"
    print(f"{shape}: {arguments.tokens_per_step:,} tokens a step = {micro_batches:g} micro-batches of {rows_each}, "
          f"{1e3 * passes:.1f} ms")  # fmt: skip
    print_table(["optimizer", "ms a step", "of the step", "tokens/s", "state MB", "predicted", "working MB",
                 "predicted at most"], rows)  # fmt: skip
    return shares


def main() -> None:
    """Print the table."""
    options = parser(__doc__)
    options.add_argument("--preset", default="160m")
    options.add_argument("--shape", default="{}", help="changes to the preset's shape, as JSON")
    options.add_argument("--context", type=int, help="tokens a row; default the preset's")
    options.add_argument("--rows", type=int, default=4, help="rows computed at once")
    options.add_argument("--tokens_per_step", type=int, default=262_144)
    arguments = options.parse_args()
    from teenytinyllama.checks import is_main_process
    from teenytinyllama.distributed import join_ranks, leave_ranks, num_ranks

    device = join_ranks()
    ranks = num_ranks()
    found = measure(arguments, device)
    if is_main_process():
        shares = show(found, arguments, ranks, device)
        del found["config"]
        write_results(arguments.json, {"share_of_step": shares, "ranks": ranks, **found})
    leave_ranks()


if __name__ == "__main__":
    main()
