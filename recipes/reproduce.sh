#!/usr/bin/env bash
# All stages of one model in order: reproduce.sh tiny | 160m | 460m | 1b1 [--accelerate zero1 ...]
# `tiny` uses the embedded stories and needs minutes on a laptop; the others read your texts from corpus/.
# Run it from the folder that holds recipes/ (a clone, or what `ttl init` made). Every stage can be run again alone:
# what is complete is not repeated, what was interrupted goes on.
set -euo pipefail
size=${1:?usage: recipes/reproduce.sh tiny|160m|460m|1b1 [options of ttl pretrain]}
shift
configs="$(dirname "$0")/configs/$size"
sizes=$(cd "$(dirname "$0")/configs" && dirname -- */tokenizer.yaml | xargs)
[ -f "$configs/tokenizer.yaml" ] || { echo "error: $size: no such size. Use one of $sizes" >&2; exit 2; }

ttl tokenizer --config "$configs/tokenizer.yaml"      # texts -> outputs/SIZE/tokenizer, with its audit
ttl pack --config "$configs/pack.yaml"                # texts -> outputs/SIZE/packed: rows of tokens
ttl pretrain --config "$configs/pretrain.yaml" "$@"   # rows -> outputs/SIZE/base: model, metrics, energy, card
ttl card "outputs/$size/base"                         # the card again, from the run's files
ttl sft --config "$configs/sft.yaml"                  # instructions -> outputs/SIZE/chat: a model that answers
