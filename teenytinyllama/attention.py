"""Which of torch's kernels computes attention, and where a model answers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def avoid_cudnn_attention() -> None:
    """Leave cuDNN's attention out in this process, as everything but pretraining should.

    It is torch's first choice on an H100 or H200, and there

    * its backward pass with a mask gives gradients that are not numbers at some row lengths (torch 2.11 and later;
      pytorch issue 196678, trl issue 7181). Met here when HateBR was fine-tuned.
    * it makes a plan for every length that a thread has not seen (pytorch pull request 190388), so each new token
      of an answer took 50 ms more (docs/gpu.md).

    Pretraining has rows of one length and no mask: there it is right. A process that pretrains afterwards turns it on
    again with `torch.backends.cuda.enable_cudnn_sdp(True)`, before layers are compiled: compiled code keeps the kernel
    that was chosen then, and so does torch's cache of it on disk (pytorch issue 185449).
    """
    import torch

    torch.backends.cuda.enable_cudnn_sdp(False)


@contextmanager
def without_cudnn_attention() -> Iterator[None]:
    """Leave cuDNN's attention out of a block or, as a decorator, of a function: for texts of many lengths."""
    import torch

    before = torch.backends.cuda.cudnn_sdp_enabled()
    avoid_cudnn_attention()
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def place_for_answers(model: "PreTrainedModel", use_cpu: bool = False) -> tuple["PreTrainedModel", str | None]:
    """Return a model in evaluation mode where it answers, an NVIDIA or AMD GPU if there is one, and what to tell of it.

    A GPU whose memory a training has, or that this torch has no kernels for, leaves it on the processor.

    Args:
        model: on the processor.
        use_cpu: leave it there.
    """
    import torch

    avoid_cudnn_attention()
    placed: Any = model.eval()
    if use_cpu or not torch.cuda.is_available():
        return placed, None
    try:
        placed = placed.to("cuda")
        torch.zeros(1, device="cuda").add_(1).item()  # does this torch have kernels for it?
    except RuntimeError as error:  # no memory left is one, too
        why = str(error).splitlines()[0]
        return placed.to("cpu"), f"note: answers on the processor, because the GPU refuses: {why}"
    return placed, None
