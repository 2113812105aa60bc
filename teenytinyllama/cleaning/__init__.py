"""Cleaning: the steps of the corpus stage that look at one document, as functions of its text.

Here: what a step says of a document that it drops.
"""

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
