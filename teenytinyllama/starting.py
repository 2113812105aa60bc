"""Starting a stage of training: everything is checked and prepared in this process before any rank exists."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .checks import EXIT_DONE


def recipes_folder() -> Path:
    """Return the folder of recipes: inside the installed package, or at the top of a checkout."""
    installed = Path(__file__).parent / "recipes"
    return installed if installed.is_dir() else Path(__file__).resolve().parent.parent / "recipes"


def start_stage(
    recipe: str,
    values: dict[str, Any],
    accelerate_file: str | None,
    num_processes: int | None,
    prepare: Callable[[dict[str, Any], int], dict[str, Any]],
    check: Callable[[dict[str, Any], int], str],
    settle: Callable[..., dict[str, Any]] | None = None,
) -> int:
    """Check everything in this process, prepare the data, then start the ranks and supervise them.

    `prepare` refuses what can be known without the data before it writes any; `check` sees the data too.

    With `settle`, a length that only caps tell is settled in between, by a test with the same ranks. With
    `hub_model_id` a process beside them publishes the run; it changes neither the ranks nor the exit code.

    Returns:
        0 done, 1 failed, 2 bad input met by a rank, 75 stopped and resumable.

    Raises:
        InputError: the config is refused; no rank was started and nothing is written.
    """
    from .arguments import write_yaml
    from .launcher import launch, plan_ranks
    from .locks import scratch_folder
    from .manifest import command_line
    from .publishing.beside import check_follower, report_follower, start_follower
    from .recorder import count_from_now
    from .training.plan import what_follows

    script = recipes_folder() / recipe
    ranks = plan_ranks(script, [], accelerate_file, num_processes)
    publishing = check_follower(values)
    values = prepare(values, ranks.num_processes)
    os.environ.setdefault("TTL_COMMAND", command_line())

    def start(values: dict[str, Any], log: Path | None = None) -> int:
        with scratch_folder() as folder:
            config = folder / "config.yaml"
            write_yaml(config, values)
            try:
                return launch(script, ["--config", str(config)], accelerate_file, num_processes, log)
            finally:
                count_from_now()  # what the ranks took is in their own account

    if settle is not None:
        values = settle(values, ranks.num_processes, check, start)
    if check(values, ranks.num_processes) == "complete":
        print(f"{values['output_dir']} is complete; {what_follows(Path(values['output_dir']))}")
        return EXIT_DONE
    follower = start_follower(Path(values["output_dir"]), publishing) if publishing else None
    code = start(values)
    if follower:
        report_follower(follower, code)
    return code


def start_pretraining(values: dict[str, Any], accelerate_file: str | None, num_processes: int | None) -> int:
    """Check a pretraining, pack its `inputs` if there are any, and run it; see `start_stage`."""
    from .training.plan import check_before_launch, pack_inputs
    from .training.speed_test import settle_length

    return start_stage(
        "pretrain.py", values, accelerate_file, num_processes, pack_inputs, check_before_launch, settle_length
    )
