"""Rows a micro-batch: tokens/s, the peak of memory, and what `planning/memory.py` says beforehand.

    python benchmarks/micro_batch.py --preset 160m --shape '{"hidden_size": 256, "intermediate_size": 1024,
        "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 4}' --context 512 --rows 1 2 4 8 16 32

Each number of rows is measured in a process of its own, in turn, over `--repeats` rounds: training steps of one
micro-batch with the fused AdamW on random rows, on the GPU if there is one. Memory is counted from before the model is
made; on a CPU it is the resident peak, on a GPU what torch reserved. The mark * is what `ttl pretrain` would choose
here for `--tokens_per_step`.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from common import in_child, interleave, median, parser, print_table, write_results


def shape_config(arguments: Any) -> Any:
    """Return the LlamaConfig that is measured."""
    from teenytinyllama.presets import preset_config

    config = preset_config(arguments.preset)
    for name, value in json.loads(arguments.shape).items():
        setattr(config, name, value)
    config.head_dim = config.hidden_size // config.num_attention_heads
    config.max_position_embeddings = arguments.context or config.max_position_embeddings
    return config


def computation(arguments: Any) -> Any:
    """Return how the steps are computed."""
    import torch

    from teenytinyllama.planning.memory import Computation

    on_gpu = torch.cuda.is_available()
    return Computation(
        precision=arguments.precision,
        on_gpu=on_gpu,
        attention=arguments.attention,
        checkpointing=arguments.checkpointing,
        loss=arguments.loss,
        compiled=arguments.compile_layers,
    )


def resident_bytes(peak: bool) -> int:
    """Return the resident memory of this process, now or at its peak since it was last reset."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM" if peak else "VmRSS"].split()[0]) * 1024


def train(arguments: Any, rows: int) -> dict[str, float]:
    """Return tokens/s (median of the steps after the first) and the peak of memory of a few training steps."""
    import torch
    from transformers import LlamaForCausalLM

    from teenytinyllama.training.speed import SpeedPlan, apply_speed

    config = shape_config(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    before = 0 if device.type == "cuda" else resident_bytes(peak=False)
    torch.manual_seed(0)
    config._attn_implementation = arguments.attention
    with device:
        model = LlamaForCausalLM(config)
    if arguments.checkpointing:
        model.gradient_checkpointing_enable()
    apply_speed(model, SpeedPlan(arguments.loss, arguments.compile_layers, {}))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    kind = torch.bfloat16 if arguments.precision == "bf16" else torch.float16
    seconds = []
    context = config.max_position_embeddings
    for _ in range(arguments.steps + 1):
        start = time.perf_counter()
        ids = torch.randint(0, config.vocab_size, (rows, context), device=device)
        with torch.autocast(device.type, kind, enabled=arguments.precision != "fp32"):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)  # as if another micro-batch of the same step followed
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_reserved() if device.type == "cuda" else resident_bytes(peak=True) - before
    return {"tokens_per_second": rows * context / median(seconds[1:]), "peak_bytes": peak}


def choice(arguments: Any) -> int | None:
    """Return the rows that a rank alone on this machine would choose now."""
    import torch

    from teenytinyllama.gpus import free_memory_bytes
    from teenytinyllama.planning.memory import choose_rows, memory_need

    config = shape_config(arguments)
    context = config.max_position_embeddings
    rows_per_rank = arguments.tokens_per_step // context
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    divisors = [rows for rows in range(1, rows_per_rank + 1) if rows_per_rank % rows == 0]
    need = memory_need(config, context, computation(arguments))
    return choose_rows(divisors, need, free_memory_bytes(device), context, device.type)


def main() -> None:
    """Print the table."""
    options = parser(__doc__)
    options.add_argument("--preset", default="tiny")
    options.add_argument("--shape", default="{}", help="changes to the preset's shape, as JSON")
    options.add_argument("--context", type=int, help="tokens a row; default the preset's")
    options.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    options.add_argument("--steps", type=int, default=4, help="timed steps of each process")
    options.add_argument("--tokens_per_step", type=int, default=262_144, help="for the automatic choice")
    options.add_argument("--precision", default="fp32", choices=["fp32", "bf16", "fp16"])
    options.add_argument("--attention", default="sdpa")
    options.add_argument("--checkpointing", action="store_true", help="compute layers again in the backward pass")
    options.add_argument("--loss", default="whole", choices=["whole", "chunked", "compiled"])
    options.add_argument("--compile_layers", action="store_true")
    options.add_argument("--child", action="store_true", help="measure the one number of rows and print it as JSON")
    arguments = options.parse_args()
    if arguments.child:
        print(json.dumps(train(arguments, arguments.rows[0])))
        return
    from teenytinyllama.planning.memory import memory_need

    config = shape_config(arguments)
    context = config.max_position_embeddings
    need = memory_need(config, context, computation(arguments))
    peaks: dict[int, list[float]] = {rows: [] for rows in arguments.rows}

    def measure(rows: int) -> float:
        found = in_child([__file__, "--child", *sys.argv[1:], "--rows", str(rows)])
        peaks[rows].append(found["peak_bytes"])
        return float(found["tokens_per_second"])

    cases = {str(rows): lambda rows=rows: measure(rows) for rows in arguments.rows}
    speeds = interleave(cases, arguments.repeats)
    chosen = choice(arguments)
    table = []
    for rows in arguments.rows:
        peak, predicted = median(peaks[rows]), need.total_bytes(rows)
        mark = f"{rows} *" if rows == chosen else str(rows)
        table.append([mark, str(rows * context), median(speeds[str(rows)]), round(peak / 1e6), round(predicted / 1e6),
                      predicted / peak])  # fmt: skip
    print(f"{config.num_hidden_layers} layers x {config.hidden_size}, context {context}, vocabulary "
          f"{config.vocab_size}, {arguments.precision}; chosen here for {arguments.tokens_per_step:,} tokens a step: "
          f"{chosen} rows")  # fmt: skip
    print_table(["rows", "tokens", "tokens/s", "peak MB", "predicted MB", "predicted/peak"], table)
    write_results(arguments.json, {"tokens_per_second": speeds, "peak_bytes": peaks, "chosen": chosen})


if __name__ == "__main__":
    main()
