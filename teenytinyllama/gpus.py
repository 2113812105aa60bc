"""What GPUs can do and what they cost: the one table that speed reports and plans read."""

import re
from dataclasses import dataclass

from .checks import InputError, near_name


@dataclass(frozen=True)
class Gpu:
    """One GPU on its own.

    Attributes:
        device: the part of the driver's device name that tells the model.
        peak_flops: dense 16-bit tensor-core peak in FLOP/s, without sparsity, added up in float32.
        memory_gb: memory in 10^9 bytes, as the data sheet counts.
        board_watts: the board's power limit.
        planned_watts: what to plan for one GPU at work, with its share of the host.
        price_usd: a usual price of an hour, to be replaced by the one you are offered.
        source: of peak, memory and board power.
        watts_source: of `planned_watts`.
        price_source: of `price_usd`.
    """

    device: str
    peak_flops: float
    memory_gb: float
    board_watts: float
    planned_watts: float
    price_usd: float
    source: str
    watts_source: str
    price_source: str


# A GPU that nobody has measured for us: nine tenths of its power limit, which is where an H100 (620-680 of 700 W) and
# an A100 (330-370 of 400 W) stand when they train, and 80 W of the host, the low end of 80-120 W.
_RULE = "0.9 x board power + 80 W of the host, the rule that fits H100 and A100"
_H100_WATTS = "GPU 620-680 W + 80-120 W of the host under training load"
_A100_WATTS = "GPU 330-370 W + 80 W of the host; TeenyTinyLlama-160m's log has 430 W (arXiv 2401.16640)"
_HOSTED = "offers of 2 to 3 USD; nanochat plans with 3"

GPUS: dict[str, Gpu] = {
    "h200": Gpu(
        "H200", 989.4e12, 141, 700, 750, 3.6,
        "NVIDIA H200 data sheet, SXM (1,979 TFLOP/s bf16 with sparsity)",
        f"as the H100, whose power limit it shares: {_H100_WATTS}",
        "RunPod, March 2026: 3.59 to 6.35 USD (as compared by deploybase.ai)",
    ),
    "h100": Gpu(
        "H100", 989.4e12, 80, 700, 750, 2.5,
        "NVIDIA H100 data sheet, SXM (1,979 TFLOP/s bf16 with sparsity)",
        _H100_WATTS,
        _HOSTED,
    ),
    "a100-80gb": Gpu(
        "A100", 312e12, 80, 400, 450, 1.5,
        "NVIDIA A100 data sheet, SXM 80 GB",
        _A100_WATTS,
        "offers of 1.2 to 1.8 USD",
    ),
    "a100-40gb": Gpu(
        "A100", 312e12, 40, 400, 450, 1.5,
        "NVIDIA A100 data sheet, SXM 40 GB",
        _A100_WATTS,
        "Lambda, May 2026: 1.48 USD (as compared by techbytes.app)",
    ),
    "rtx4090": Gpu(
        "RTX 4090", 165.2e12, 24, 450, 485, 0.6,
        "NVIDIA Ada GPU architecture white paper, table of the RTX 4090 (fp32 accumulation)",
        _RULE,
        "RunPod, March 2026: 0.34 to 0.60 USD (as compared by deploybase.ai)",
    ),
    "rtx3090": Gpu(
        "RTX 3090", 71e12, 24, 350, 395, 0.4,
        "NVIDIA Ampere GA102 white paper, table of the RTX 3090 (fp32 accumulation)",
        _RULE,
        "RunPod, March 2026: 0.22 to 0.39 USD (as compared by deploybase.ai)",
    ),
    "l4": Gpu(
        "L4", 121e12, 24, 72, 145, 0.8,
        "NVIDIA L4 data sheet (242 TFLOP/s bf16 with sparsity)",
        _RULE,
        "Modal, May 2026: 0.80 USD (as compared by techbytes.app)",
    ),
    "t4": Gpu(
        "T4", 65e12, 16, 70, 143, 0.6,
        "NVIDIA T4 data sheet (fp16; Turing has no bf16)",
        _RULE,
        "Modal, May 2026: 0.59 USD (as compared by techbytes.app)",
    ),
}  # fmt: skip

_ALSO = {"a100": "a100-80gb"}


def get_gpu(name: str) -> tuple[str, Gpu]:
    """Return the key and the record of a GPU; capitals, spaces and hyphens do not matter, and a100 has 80 GB.

    Raises:
        InputError: there is none of that name.
    """

    def plain(text: str) -> str:
        return re.sub(r"[^a-z0-9]", "", text.lower())

    known = {plain(key): key for key in GPUS} | {plain(short): key for short, key in _ALSO.items()}
    wanted = plain(name).removeprefix("nvidia").removeprefix("geforce")
    if wanted not in known:
        near = near_name(wanted, known)
        raise InputError(
            f"gpu={name}: must be one of {', '.join([*GPUS, 'cpu'])}.{near} Another one needs a "
            "measured run: leave --gpu out and give --calibrate RUN, a short one made on it."
        )
    return known[wanted], GPUS[known[wanted]]


def find_gpu(device: str) -> tuple[str, Gpu] | None:
    """Return the key and the record of the GPU that a driver's device name means, or None.

    Where there are two sizes of memory, the name usually tells which (`NVIDIA A100-SXM4-40GB`); else it is the larger.
    """
    # Whole words: an L40S is no L4. A Ti, a laptop's card or the PCIe and NVL forms of an H100 have another peak.
    found = [
        (key, gpu)
        for key, gpu in GPUS.items()
        if re.search(rf"(?<![A-Za-z0-9]){gpu.device}(?![A-Za-z0-9]|[ -](?:Ti|SUPER|D|Laptop|Max-Q|PCIe|NVL)\b)", device)
    ]
    named = [(key, gpu) for key, gpu in found if f"{gpu.memory_gb:.0f}GB" in device]
    return next(iter(named or found), None)
