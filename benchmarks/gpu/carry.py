"""Tokenizer and packed rows for a GPU machine without the network, checked for their size.

    python benchmarks/gpu/carry.py --inputs corpus --folder carried

makes `carried/tokenizer` and `carried/packed` (rows of 2,048 tokens, a hundredth of the documents held out), and
refuses more than 20 million tokens to train on, or more than 60 MiB with what --with names beside them (wheels,
benchmark files).
"""

import argparse
import sys
from pathlib import Path

from teenytinyllama.checks import EXIT_BAD_INPUT, InputError, ensure
from teenytinyllama.data.pack import PackConfig, pack
from teenytinyllama.data.packed import packed_manifest
from teenytinyllama.tokenizer.train import TokenizerConfig, build_tokenizer

MOST_TOKENS, MOST_BYTES = 20_000_000, 60 * 2**20
CONTEXT, VOCAB_SIZE, HELD_OUT = 2048, 32_000, 0.01


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    return (
        path.stat().st_size
        if path.is_file()
        else sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    )


def check(folder: Path, beside: list[Path]) -> str:
    """Return a line about what is carried.

    Raises:
        InputError: too many tokens or bytes.
    """
    tokens = packed_manifest(str(folder / "packed"))["train_tokens"]
    sizes = {str(path): size_of(path) for path in (folder, *beside)}
    total = sum(sizes.values())
    listed = ", ".join(f"{name} {size / 2**20:.1f} MiB" for name, size in sizes.items())
    ensure(tokens <= MOST_TOKENS, f"inputs: make {tokens:,} tokens, more than {MOST_TOKENS:,}. Leave some out.")
    ensure(total <= MOST_BYTES, f"{listed}: together more than {MOST_BYTES / 2**20:.0f} MiB. Leave some out.")
    return f"{tokens:,} tokens to train on; {listed}; together {total / 2**20:.1f} of {MOST_BYTES / 2**20:.0f} MiB"


def main() -> int:
    """Make what is missing, check it, and say what it is."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--inputs", nargs="+", required=True, help="texts, as for `ttl pack`")
    options.add_argument("--folder", type=Path, required=True)
    options.add_argument("--vocab_size", type=int, default=VOCAB_SIZE)
    options.add_argument("--context", type=int, default=CONTEXT)
    options.add_argument("--with", dest="beside", nargs="*", type=Path, default=[], help="what travels with it")
    arguments = options.parse_args()
    try:
        tokenizer = build_tokenizer(
            TokenizerConfig(arguments.inputs, vocab_size=arguments.vocab_size, validation_fraction=HELD_OUT,
                            output_dir=str(arguments.folder / "tokenizer"))
        )  # fmt: skip
        pack(PackConfig(arguments.inputs, tokenizer=str(tokenizer), context=arguments.context,
                        validation_fraction=HELD_OUT, output_dir=str(arguments.folder / "packed")))  # fmt: skip
        print(check(arguments.folder, arguments.beside))
    except InputError as error:
        print(error, file=sys.stderr)
        return EXIT_BAD_INPUT
    return 0


if __name__ == "__main__":
    sys.exit(main())
