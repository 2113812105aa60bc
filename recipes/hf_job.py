# /// script
# requires-python = ">=3.11"
# dependencies = ["teenytinyllama[sft]"]
#
# [tool.hf-jobs]
# flavor = "t4-small"
# timeout = "6h"
# secrets = ["HF_TOKEN"]
# ///
"""Any verb of `ttl` on a rented machine of Hugging Face Jobs, which installs what the lines above ask for.

The run lies in a bucket that is mounted as a folder, so its checkpoints outlive the machine, and the same line goes on:

  hf jobs uv run -v hf://buckets/ana/meus-modelos:/modelos recipes/hf_job.py \
    pretrain --config recipes/configs/160m/pretrain.yaml --tokenizer /modelos/tokenizer --packed /modelos/packed \
    --output_dir /modelos/base --max_hours 5.5

Files of this computer that the line names, such as the YAML, are sent along. --dry-run shows the job and sends nothing.
"""

import sys

from teenytinyllama.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
