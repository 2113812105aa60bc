"""How two runs that should be the same differ: weights bit by bit, losses and gradient norms step by step."""

import math
from pathlib import Path
from typing import Any

from common import print_table

from teenytinyllama.stage_folder import METRICS_NAME
from teenytinyllama.training.metrics import read_jsonl


def compare_runs(one: Path, other: Path, after_step: int) -> dict[str, Any]:
    """Return how the final weights, and what was logged after a step, differ between the folders of two runs."""
    weights = compare_weights(one / "model.safetensors", other / "model.safetensors")
    first, second = (
        {record["step"]: record for record in read_jsonl(folder / METRICS_NAME)
         if "loss" in record and record["step"] > after_step} for folder in (one, other)
    )  # fmt: skip
    return {"weights": weights, **{key: compare_logged(first, second, key) for key in ("loss", "grad_norm")}}


def compare_logged(one: dict[int, dict[str, Any]], other: dict[int, dict[str, Any]], key: str) -> dict[str, Any]:
    """Return how a figure differs between the records of the same steps.

    Raises:
        ValueError: the steps are not the same, or there are none.
    """
    if not one or one.keys() != other.keys():
        raise ValueError(f"steps {sorted(one)} of one run and {sorted(other)} of the other: cannot be compared")
    apart = {step: abs(one[step][key] - other[step][key]) for step in one}
    first = min((step for step, difference in apart.items() if difference), default=None)
    return {"equal": first is None, "first_step_apart": first, "largest_difference": max(apart.values()),
            "num_steps": len(apart)}  # fmt: skip


def compare_weights(one: Path, other: Path) -> dict[str, Any]:
    """Return how two files of weights differ: bit by bit, and by the numbers where the bits differ.

    The relative difference of a tensor is its largest difference by its largest weight: single weights near zero would
    say little.

    Raises:
        ValueError: they do not hold the same tensors.
    """
    import torch
    from safetensors import safe_open

    largest = relative = 0.0
    different: list[str] = []
    with safe_open(one, "pt") as first, safe_open(other, "pt") as second:
        names = sorted(first.keys())
        if names != sorted(second.keys()):
            raise ValueError(f"{one}, {other}: hold tensors of different names")
        for name in names:
            a, b = first.get_tensor(name), second.get_tensor(name)
            if (a.shape, a.dtype) != (b.shape, b.dtype):
                raise ValueError(f"{name}: {a.shape} of {a.dtype} and {b.shape} of {b.dtype}")
            if torch.equal(a.flatten().view(torch.uint8), b.flatten().view(torch.uint8)):
                continue
            different.append(name)
            apart = float((a.double() - b.double()).abs().max())
            largest = max(largest, apart)
            relative = max(relative, apart / max(float(a.double().abs().max()), math.ulp(0.0)))
    return {"equal": not different, "num_tensors": len(names), "num_different": len(different),
            "first_different": different[0] if different else None, "largest_difference": largest,
            "largest_relative_difference": relative}  # fmt: skip


def show_resume(figures: dict[str, Any]) -> None:
    """Print the resume part."""
    rows = []
    names = {
        "resumed": f"resumed after step {figures['checkpoint']} of {figures['steps']}, against going on",
        "repeated": "resumed again, against the first time",
    }
    for key, name in names.items():
        weights, loss, norm = (figures[key][what] for what in ("weights", "loss", "grad_norm"))
        tensors = f"{weights['num_different']} of {weights['num_tensors']}"
        rows.append([name, "yes" if weights["equal"] else "no", tensors, weights["largest_difference"],
                     weights["largest_relative_difference"], loss["largest_difference"], norm["largest_difference"],
                     loss["first_step_apart"]])  # fmt: skip
    print_table(["run", "weights equal", "tensors that differ", "largest difference", "relative",
                 "of losses", "of gradient norms", "first loss apart at step"], rows)  # fmt: skip
    if not figures["repeated"]["weights"]["equal"]:
        print("The same steps twice are not the same to the bit here, so resumed ones cannot be; compare the two rows.")
