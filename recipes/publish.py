"""Publish a run: the model on `main`, every kept checkpoint on a branch `stepN`, with its card and its energy.

What would be sent, without sending it:     ttl publish outputs/160m/base --to ana/meu-modelo --dry-run
The same files in a folder:                 ttl publish outputs/160m/base --to folder:publicado
To a private repository, or a public one:   ttl publish outputs/160m/base --to ana/meu-modelo --public
While it trains, in another terminal:       ttl publish outputs/160m/base --to ana/meu-modelo --follow
The same without `ttl`:                     python recipes/publish.py outputs/160m/base --to ana/meu-modelo
Log in first with `hf auth login`; a token is never given on the command line or in a file.
"""

import sys
from pathlib import Path

from teenytinyllama.arguments import parse
from teenytinyllama.checks import ensure, run_main
from teenytinyllama.publishing.follow import run_publish
from teenytinyllama.publishing.publish import PublishConfig


def main() -> None:
    """Publish the run that the first word names."""
    words = sys.argv[1:]
    run = words.pop(0) if words and not words[0].startswith("--") else None
    config = parse(PublishConfig, words)
    ensure(run, "publish.py: needs a run as its first word: the output_dir of a training.")
    run_publish(Path(str(run)), config)


if __name__ == "__main__":
    sys.exit(run_main(main))
