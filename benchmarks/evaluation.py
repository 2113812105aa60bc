"""How fast log-likelihood tasks are scored, against lm-evaluation-harness with the same model, tasks and batch.

    python benchmarks/evaluation.py MODEL --data_dir DIR --tasks arc_zero truthfulqa --limit 24 --batch_size 8

A  the harness's own class for transformers models (`hf`), as its command runs it, at its rate of questions a second
B  `ttl evaluate`, which reads each context once and makes logits only for what is scored

Both run the same tasks through the harness's `evaluate` and have to give the same numbers. They take turns.
"""

import logging
from typing import Any

import torch
from common import interleave, median, parser, print_table, seconds_of, write_results
from lm_eval.models.huggingface import HFLM

from teenytinyllama.evaluation.config import TASKS
from teenytinyllama.evaluation.harness import HarnessModel, run_task
from teenytinyllama.models import from_pretrained


def main() -> None:
    """Time both on each task and print a table."""
    arguments = parser(__doc__)
    arguments.add_argument("model")
    arguments.add_argument("--data_dir", required=True)
    arguments.add_argument("--tasks", nargs="+", default=["arc_zero"])
    arguments.add_argument("--limit", type=int, default=24)
    arguments.add_argument("--batch_size", type=int, default=8)
    options = arguments.parse_args()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    model, tokenizer = from_pretrained(options.model)
    model = model.float().to("cuda" if torch.cuda.is_available() else "cpu")
    models = {
        "harness": HFLM(pretrained=model, tokenizer=tokenizer, batch_size=options.batch_size),
        "ttl": HarnessModel(model, tokenizer, options.batch_size),
    }
    rows, figures = [], {}
    for name in options.tasks:
        values: dict[str, Any] = {}

        def run(which: str, name: str = name, values: dict[str, Any] = values) -> None:
            outcome = run_task(models[which], TASKS[f"ttl_{name}"], options.data_dir, None, options.limit)
            values[which] = (outcome.values, len(outcome.rows))

        found = interleave(
            {which: lambda which=which, run=run: seconds_of(lambda: run(which)) for which in models}, options.repeats
        )
        seconds = {which: median(times) for which, times in found.items()}
        (theirs, count), (ours, _) = values["harness"], values["ttl"]
        difference = max(abs(theirs[metric] - ours[metric]) for metric in ours)
        ratio = seconds["harness"] / seconds["ttl"]
        rows.append([name, count, *(count / seconds[which] for which in models), ratio, f"{difference:.1e}"])
        figures[name] = {"seconds": found, "ratio": ratio, "largest_difference": difference, "questions": count}
    print(f"batch {options.batch_size}, {torch.get_num_threads()} threads, torch {torch.__version__}, {model.device}")
    print_table(["task", "questions", "harness, questions/s", "ttl, questions/s", "ttl / harness", "difference"], rows)
    write_results(options.json, {"batch_size": options.batch_size, "tasks": figures})


if __name__ == "__main__":
    main()
