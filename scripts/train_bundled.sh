#!/usr/bin/env bash
# Trains the bundled checkpoint from scratch, as docs/training_log.md describes it:
#
#     scripts/train_bundled.sh CLIPS OUTPUT
#
# CLIPS: tar shards of short unlabelled clips. OUTPUT: a folder for masks, runs and the result.
# Every step goes on where it stopped, so the script can be run again after an interruption.
set -euo pipefail
mkdir -p "$2"
clips=$(cd "$1" && pwd)
output=$(cd "$2" && pwd)
cd "$(dirname "$0")/.."

masks() { # NAME [options]: pseudo-masks of the clips
  python scripts/make_pseudo_masks.py --dataset "$clips" --output_dir "$output/$1" --num_workers 2 "${@:2}"
}

train() { # NAME STAGES STEPS [options]: one run with its moving average
  [ -f "$output/$1/all_results.json" ] && return
  accelerate launch --cpu --num_processes 1 --num_machines 1 --dynamo_backend no --mixed_precision bf16 \
    scripts/pretrain.py --recipe moving_objects --output_dir "$output/$1" --stages "$2" --max_train_steps "$3" \
    --augmentation medium --checkpointing_steps 200 --dataloader_num_workers 1 --validation_steps 0 \
    --num_object_segment_pairs 0 --speed_report_seconds 0 --resume_from_checkpoint latest "${@:4}"
}

# 1. The motion pathway follows classical flow.
train motion classical_flow 2600 --checkpoints_total_limit 20 --dataset "$clips" --crop_size 128x192 --per_device_train_batch_size 4 \
  --learning_rate 6e-4 --num_warmup_steps 60 --ema_decay 0.99 --seed 0

# 2. The appearance pathway learns what moves against the camera and stands out from the border.
masks masks1 --use_saliency
train round1 pseudo_mask 1600 --checkpoints_total_limit 20 --dataset "$output/masks1" --crop_size 128x192 \
  --per_device_train_batch_size 16 --learning_rate 2e-3 --num_warmup_steps 60 --ema_decay 0.995 --seed 0

# 3. The same at a larger size. It starts from step 800: on videos, later ones learn the errors of
#    the masks (training log).
train round2 pseudo_mask 1000 --checkpoints_total_limit 20 --dataset "$output/masks1" \
  --model_name_or_path "$output/round1/step_800/ema" --crop_size 160x240 --per_device_train_batch_size 16 \
  --learning_rate 1.5e-3 --num_warmup_steps 40 --ema_decay 0.995 --seed 2

# 4. Both pathways learn from segment flow, as published, with the pseudo-masks beside it.
python scripts/merge_pathways.py --appearance "$output/round2/ema" \
  --motion "$output/motion/step_2000/ema" --output_dir "$output/merged"
train joint segment_flow_pseudo_mask 200 --dataset "$output/masks1" --model_name_or_path "$output/merged" \
  --crop_size 160x240 --per_device_train_batch_size 8 --learning_rate 3e-4 --num_warmup_steps 20 \
  --ema_decay 0.97 --seed 4

python scripts/bundle_checkpoint.py --model_name_or_path "$output/joint/ema" --dataset "$clips" \
  --short_side 176 --significant_bits 5 --output_dir "$output/bundle"
