"""Which of torch's kernels computes attention, and where a model answers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def avoid_cudnn_attention() -> None:
    """Leave cuDNN's attention out in this process, as everything but pretraining should.

    It is torch's first choice on an H100 or H200, and there

    * its backward pass with a mask gives gradients that are not numbers at some row lengths (torch 2.11 and later;
      pytorch issue 196678, trl issue 7181). Met here when HateBR was fine-tuned.
    * it makes a plan for every length that a thread has not seen (pytorch pull request 190388), so each new token
      of an answer took 50 ms more (docs/gpu.md).

    Pretraining has rows of one length and no mask: there it is right, and the fastest.
    """
    import torch

    torch.backends.cuda.enable_cudnn_sdp(False)


@contextmanager
def without_cudnn_attention() -> Iterator[None]:
    """Leave cuDNN's attention out of a block: for texts of many lengths amid a pretraining."""
    import torch

    before = torch.backends.cuda.cudnn_sdp_enabled()
    avoid_cudnn_attention()
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def place_for_answers(model: "PreTrainedModel") -> "PreTrainedModel":
    """Return a model in evaluation mode where it answers fastest: on an NVIDIA or AMD GPU if torch sees one."""
    import torch

    avoid_cudnn_attention()
    placed: Any = model
    return cast("PreTrainedModel", placed.to("cuda") if torch.cuda.is_available() else placed).eval()
