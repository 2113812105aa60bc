"""Ranks that wait for each other."""

from typing import Any, ClassVar

import pytest
import torch
from torch import distributed

from teenytinyllama.distributed import SharedFlag, wait_for_ranks


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


class FakeEvent:
    """What CUDA's events tell: whether the GPU has come to where they were recorded."""

    recorded: ClassVar[list["FakeEvent"]] = []
    waited: ClassVar[list[int]] = []

    def record(self) -> None:
        FakeEvent.recorded.append(self)

    def synchronize(self) -> None:
        FakeEvent.waited.append(FakeEvent.recorded.index(self))


def test_a_flag_on_gpus_is_answered_one_call_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on two GPUs of which the other one says no, then yes: no call waits for what it has queued itself."""
    others = iter([0, 1, 0, 0])
    order: list[str] = []

    def reduce(flag: torch.Tensor, op: Any) -> None:
        order.append("reduced")
        assert op == distributed.ReduceOp.MAX
        flag.clamp_(min=next(others))

    full, empty = torch.full, torch.empty
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "get_backend", lambda: "nccl")
    monkeypatch.setattr(distributed, "all_reduce", reduce)
    monkeypatch.setattr(torch, "full", lambda size, value, dtype, device: full(size, value, dtype=dtype))
    monkeypatch.setattr(torch, "empty", lambda size, dtype, pin_memory: empty(size, dtype=dtype))
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    shared, gpu = SharedFlag(), torch.device("cuda", 0)
    assert [shared.ask(here, gpu) for here in (False, False, True, False)] == [False, False, True, True]
    assert order == ["reduced"] * 4
    assert (len(FakeEvent.recorded), FakeEvent.waited) == (4, [0, 1, 2])  # each is waited for in the call after it


def test_a_flag_of_one_rank_is_its_own() -> None:
    shared = SharedFlag()
    assert [shared.ask(here, torch.device("cpu")) for here in (False, True)] == [False, True]
