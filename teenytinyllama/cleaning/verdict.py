"""What a step of the corpus stage says of a document."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Drop:
    """Why a document is dropped.

    Attributes:
        reason: the rule's name, as the passport counts it.
        value: what the rule measured.
        limit: what it allows.
    """

    reason: str
    value: float
    limit: float
