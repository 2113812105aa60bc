"""Loss against size and data by the published scaling laws.

Absolute losses do not transfer: another tokenizer or another corpus moves them. The two TeenyTinyLlama baselines ended
at 2.798 and 2.466 nats per token (arXiv 2401.16640), and the refit predicts 3.18 and 2.74. Differences do: 0.333 then,
0.435 predicted. So a law ranks plans, and `calibration` moves it onto a corpus by runs of one's own.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class LossLaw:
    """L(N, D) = E + A / N^alpha + B / D^beta: nats per token of N parameters (all of them) trained on D tokens.

    Attributes:
        title: how tables call it.
        irreducible: E, in nats.
        size_scale: A.
        data_scale: B.
        size_exponent: alpha.
        data_exponent: beta.
        source: where the constants are from.
        repeats: whether it knows that repeated tokens teach less.
    """

    title: str
    irreducible: float
    size_scale: float
    data_scale: float
    size_exponent: float
    data_exponent: float
    source: str
    repeats: bool = False

    @property
    def balance(self) -> float:
        """Return G = (alpha A / (beta B))^(1 / (alpha + beta)), the constant of the compute-optimal split."""
        ratio = self.size_exponent * self.size_scale / (self.data_exponent * self.data_scale)
        return float(ratio ** (1 / (self.size_exponent + self.data_exponent)))


LAWS: dict[str, LossLaw] = {
    "hoffmann": LossLaw(
        "printed", 1.69, 406.4, 410.7, 0.34, 0.28, "Hoffmann et al. 2022 (arXiv 2203.15556), equation 10, as printed"
    ),
    "hoffmann_tex": LossLaw(
        "TeX",
        1.6934,
        406.4,
        410.7,
        0.3392,
        0.2849,
        "the same, with the digits of its TeX source (in arXiv 2404.10102)",
    ),
    "besiroglu": LossLaw(
        "refit",
        1.8172,
        482.01,
        2085.43,
        0.3478,
        0.3658,
        "Besiroglu et al. 2024 (arXiv 2404.10102), refitted to the same runs",
    ),
    "muennighoff": LossLaw(
        "repeats",
        math.exp(0.6254804),
        math.exp(6.255414),
        math.exp(7.3049974),
        0.3526596,
        0.3526596,
        "Muennighoff et al. 2023 (arXiv 2305.16264), data-constrained, C4",
        repeats=True,
    ),
}

# What the laws were fitted to: "over 400 language models ranging from 70 million to over 16 billion parameters on 5 to
# 500 billion tokens" (Hoffmann et al. 2022, abstract; the refit is of the same runs).
FITTED_PARAMETERS, FITTED_TOKENS = (70e6, 16e9), (5e9, 500e9)
# Tokens a parameter beyond which nobody has measured that a model goes on learning. Source: Sardana et al. 2023, Beyond
# Chinchilla-Optimal (arXiv 2401.00448): "up to 10,000".
MOST_TOKENS_PER_PARAMETER = 10_000

# How fast repeated tokens and surplus parameters lose their worth. Source: huggingface/datablations, README
# (Muennighoff et al., arXiv 2305.16264, equations 5 and 6).
_REPEATED_TOKENS_WORTH, _SURPLUS_PARAMETERS_WORTH = 15.387756, 5.309743


def predicted_loss(law: LossLaw, num_parameters: float, tokens: float, unique_tokens: float | None = None) -> float:
    """Return the predicted loss in nats per token.

    Args:
        law: a value of `LAWS`.
        num_parameters: all parameters, embeddings too.
        tokens: tokens trained on, repeated ones each time.
        unique_tokens: different tokens there are; None: no token is repeated. Laws without repeats take a repeated
            token for a new one.
    """
    if law.repeats:
        unique = min(tokens if unique_tokens is None else unique_tokens, tokens)
        num_parameters = effective_parameters(law, num_parameters, unique)
        tokens = unique * effective_epochs(tokens / unique)
    size_term = law.size_scale / num_parameters**law.size_exponent
    return float(law.irreducible + size_term + law.data_scale / tokens**law.data_exponent)


def effective_epochs(epochs: float) -> float:
    """Return how many epochs of fresh tokens so many epochs of the same tokens are worth (1 or fewer: all of them)."""
    repeats = max(epochs - 1, 0.0)
    worth = _REPEATED_TOKENS_WORTH * (1 - math.exp(-repeats / _REPEATED_TOKENS_WORTH))
    return min(epochs, 1.0) + worth


def effective_parameters(law: LossLaw, num_parameters: float, unique_tokens: float) -> float:
    """Return the parameters that count: those beyond what the unique tokens can feed lose their worth."""
    feedable = (unique_tokens * law.balance) ** (law.data_exponent / law.size_exponent) * law.balance
    fed = min(num_parameters, feedable)
    surplus = num_parameters / fed - 1
    worth = _SURPLUS_PARAMETERS_WORTH * (1 - math.exp(-surplus / _SURPLUS_PARAMETERS_WORTH))
    return float(fed * (1 + worth))


def optimum(law: LossLaw, compute_flops: float) -> tuple[float, float]:
    """Return the parameters and the fresh tokens with the lowest loss for C = 6 N D FLOPs.

    N = G (C / 6)^(beta / (alpha + beta)), D = C / (6 N). Source: Hoffmann et al. (arXiv 2203.15556), equation 4.
    """
    share = law.data_exponent / (law.size_exponent + law.data_exponent)
    num_parameters = law.balance * (compute_flops / 6) ** share
    return num_parameters, compute_flops / 6 / num_parameters


def unique_optimum(law: LossLaw, compute_flops: float, unique_tokens: float) -> tuple[float, float]:
    """Return the parameters and the tokens with the lowest loss for C = 6 N D FLOPs when tokens have to be repeated.

    There is no closed form: sizes from a thirtieth to thirty times
    the optimum for fresh tokens are tried in steps of 1 %.
    """
    fresh, _ = optimum(law, compute_flops)
    sizes = [fresh * 1.01**step for step in range(-342, 343)]
    best = min(sizes, key=lambda size: predicted_loss(law, size, compute_flops / 6 / size, unique_tokens))
    return best, compute_flops / 6 / best
