"""Train a tiny random Llama for six steps, be stopped by a signal to one rank in the third, and resume.

Usage: train.py FOLDER [--uninterrupted]. The losses of all steps and what the ranks know of each other go to
FOLDER/rank_N.json.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from teenytinyllama.distributed import check_ranks, exit_rank, leave_ranks, prepare_rank
from teenytinyllama.training.trainer import StopCallback

ROWS_PER_STEP, STEPS, STOP_AFTER = 4, 6, 3


class SignalOneRank(TrainerCallback):
    """Send TERM to this process in the third step, on the last rank only."""

    def on_step_begin(self, args, state, control, **kwargs):
        """Send the signal as another process would."""
        if state.global_step == STOP_AFTER - 1 and args.process_index == args.world_size - 1:
            os.kill(os.getpid(), signal.SIGTERM)


def build_trainer(arguments, callbacks):
    """Return a Trainer with the same model and rows at each call."""
    AcceleratorState._reset_state()  # DeepSpeed allows one Trainer a process; a resumed run would be a new process
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, **shape))
    rows = torch.randint(0, 64, (32, 16), generator=torch.Generator().manual_seed(1))
    dataset = [{"input_ids": row, "labels": row} for row in rows]
    return Trainer(model=model, args=arguments, train_dataset=dataset, callbacks=callbacks)


def main():
    """Train, stop, resume, and write what was seen."""
    folder, world_size = Path(sys.argv[1]), int(os.environ.get("WORLD_SIZE", "1"))
    prepare_rank()
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=ROWS_PER_STEP // world_size,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
        ddp_find_unused_parameters=False,
        disable_tqdm=True,
        use_cpu=not torch.accelerator.is_available(),
    )
    check_ranks(arguments)
    stop, stopped, checkpoint = StopCallback(), False, None
    if "--uninterrupted" not in sys.argv:
        build_trainer(arguments, [stop, SignalOneRank()]).train()
        stopped, checkpoint = stop.stopped, str(folder / f"checkpoint-{STOP_AFTER}")
    trainer = build_trainer(arguments, [stop])
    trainer.train(resume_from_checkpoint=checkpoint)
    seen = {
        "world_sizes": [
            world_size,
            arguments.world_size,
            torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1,
        ],
        "device": arguments.device.type,
        "engine": type(trainer.model_wrapped).__name__,
        "zero_stage": trainer.accelerator.deepspeed_plugin.zero_stage if trainer.is_deepspeed_enabled else 0,
        "stopped": [stopped, stop.stopped],
        "handler_restored": signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
    }
    (folder / f"rank_{arguments.process_index}.json").write_text(json.dumps(seen))
    leave_ranks()


main()
exit_rank(0)
