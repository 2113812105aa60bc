"""Strikes a process of this package at a named point, as the environment variable TTL_FAULT says; else does nothing.

Python imports a module of this name when it starts, so that the command is the real one and the package is unchanged.
TTL_FAULT is a JSON object:

* `place`: `module:name` of the function that is struck, such as `teenytinyllama.checkpointing.checkpoints:write_marker`;
* `call`: at its how-manyth call in one process (1); only calls with `match` in their arguments count, where it is given;
* `when`: `before` or `after` it has done its work (before);
* `cut`, `remove`, `append`: files to shorten to half, to delete, and to write a text behind (name -> text) first, as a
  kill in the middle leaves them;
* `what`: `kill` (SIGKILL to this process), `memory` (an allocation that fails), or nothing;
* `set`: `module:NAME` -> value, set when the module is imported.
"""

import importlib.abc
import importlib.machinery
import json
import os
import signal
import sys
from pathlib import Path

FAULT = json.loads(os.environ.get("TTL_FAULT") or "{}")


def strike():
    """Leave the files as a kill in the middle would, and be killed."""
    for name in FAULT.get("cut", ()):
        os.truncate(name, Path(name).stat().st_size // 2)
    for name in FAULT.get("remove", ()):
        Path(name).unlink()
    for name, text in FAULT.get("append", {}).items():
        with Path(name).open("a") as file:
            file.write(text)
    if FAULT.get("what", "kill") == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if FAULT["what"] == "memory":
        import torch

        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has …")


def struck(function):
    """Return a function that is struck at one of its calls."""
    calls = [0]

    def called(*args, **keys):
        counts = FAULT.get("match", "") in repr((args, keys))
        calls[0] += counts
        now = counts and calls[0] == FAULT.get("call", 1)
        if now and FAULT.get("when", "before") == "before":
            strike()
        found = function(*args, **keys)
        if now and FAULT.get("when") == "after":
            strike()
        return found

    return called


def change(module):
    """Put what is struck and what is set into a module that was just imported."""
    name, _, function = FAULT.get("place", "").partition(":")
    if module.__name__ == name:
        *outer, last = function.split(".")
        holder = module
        for part in outer:
            holder = getattr(holder, part)
        setattr(holder, last, struck(getattr(holder, last)))
    for place, value in FAULT.get("set", {}).items():
        name, _, constant = place.partition(":")
        if module.__name__ == name:
            setattr(module, constant, value)


class Finder(importlib.abc.MetaPathFinder):
    """Finds the modules that are changed where Python finds them, and changes them when they have been executed."""

    def find_spec(self, name, path=None, target=None):
        """Return the spec of a module that is to be changed, None for all others."""
        if name not in {place.partition(":")[0] for place in (FAULT.get("place", ""), *FAULT.get("set", {}))}:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        execute = spec.loader.exec_module

        def execute_and_change(module):
            execute(module)
            change(module)

        spec.loader.exec_module = execute_and_change
        return spec


if FAULT:
    if FAULT.get("place", "").startswith("shutil:"):  # imported long ago
        change(sys.modules.get("shutil") or __import__("shutil"))
    sys.meta_path.insert(0, Finder())
