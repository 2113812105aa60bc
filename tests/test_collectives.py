"""Ranks that wait for each other."""

import pytest
import torch
from torch import distributed

from teenytinyllama.collectives import wait_for_ranks


@pytest.mark.parametrize(("backend", "gpus"), [("nccl", [1]), ("gloo", None)])
def test_a_barrier_is_told_its_gpu(backend: str, gpus: list[int] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL prints a warning at every barrier that is not; gloo refuses one that is."""
    told: list[list[int] | None] = []
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_backend", lambda: backend)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(distributed, "barrier", lambda device_ids: told.append(device_ids))
    wait_for_ranks()
    assert told == [gpus]


def test_alone_nothing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "barrier", lambda **_: pytest.fail("a barrier without ranks"))
    wait_for_ranks()
