"""Stands for `recipes/pretrain.py` whose save of a step is killed with SIGKILL: killed_save.py PLACE STEP --config x.yaml.

PLACE is where: `weights`, `optimizer` and `state` after each of these was written, `marker` halfway through writing the
marker, `rotation` when half of an old checkpoint is deleted.
"""

import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

from teenytinyllama import stage_folder as manifest
from teenytinyllama.arguments import build, read_values
from teenytinyllama.checkpointing import checkpoints
from teenytinyllama.checkpointing import saving as callback_module
from teenytinyllama.checks import run_main
from teenytinyllama.training.config import PretrainConfig
from teenytinyllama.training.pretrain import pretrain
from teenytinyllama.training.trainer import Pretrainer

PLACE, STEP = sys.argv[1], int(sys.argv[2])


def kill():
    """End as by `kill -9`, the kernel's memory killer or a power cut."""
    os.kill(os.getpid(), signal.SIGKILL)


def kill_before(name):
    """Be killed when the Trainer begins the named part of a save of STEP."""
    method = getattr(Pretrainer, name)

    def killed(self, *arguments):
        if self.state.global_step == STEP:
            kill()
        method(self, *arguments)

    setattr(Pretrainer, name, killed)


def half_a_marker(path, content):
    """Write a part of the marker's temporary file."""
    if content.get("step") == STEP:
        path.with_name(path.name + ".partial").write_text('{"step": 8, "wor')
        kill()
    manifest.write_json(path, content)


def half_a_deletion(path):
    """Delete a part of a checkpoint."""
    (Path(path) / "model.safetensors").unlink()
    kill()


def no_sync(path):
    """Be killed when all files are written and none is marked."""
    if path.name == f"checkpoint-{STEP}":
        kill()
    checkpoints.sync_files(path)


def main():
    """Train until killed."""
    values = read_values(PretrainConfig, sys.argv[3:])
    if PLACE == "weights":
        kill_before("_save_optimizer_and_scheduler")
    if PLACE == "optimizer":
        kill_before("_save_rng_state")
    if PLACE == "state":
        callback_module.sync_files = no_sync
    if PLACE == "marker":
        checkpoints.write_json = half_a_marker
    if PLACE == "rotation":
        checkpoints.shutil = SimpleNamespace(rmtree=half_a_deletion)
    pretrain(build(PretrainConfig, values), values)


sys.exit(run_main(main))
