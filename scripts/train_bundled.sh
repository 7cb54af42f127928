#!/usr/bin/env bash
# Trains the bundled checkpoint from scratch, as docs/training_log.md describes it:
#
#     scripts/train_bundled.sh CLIPS [CLIPS ...] OUTPUT
#
# CLIPS: sets of short unlabelled clips, each a folder of tar shards, of frames or of videos.
# OUTPUT: a folder for masks and runs, and for the result, OUTPUT/bundle.
#
# The same call goes on where an earlier one stopped, and does nothing once OUTPUT/bundle is there.
# Hours on two CPU cores; a trial of every step takes minutes on a few clips:
#
#     STEP_UNIT=1 CONFIG=tiny scripts/train_bundled.sh CLIPS OUTPUT
#
# Variables; without them it is the recipe of the bundled checkpoint:
#     STEP_UNIT    all numbers of steps are multiples of it (200: 2600, 1600, 1000 and 200 steps; 1:
#                  13, 8, 5 and 2), and so is the distance of checkpoints; warm-up shrinks with it
#     CONFIG       configuration of the model: small or tiny (small)
#     FIRST_SETS   the motion run and round 1 take so many sets of clips, round 2 and the joint run
#                  all (all; the bundled checkpoint was trained with 1 of 2)
#     NUM_WORKERS  processes that make masks; the result is the same (2)
#     PYTHON       Python with amd-hf[train] (python)
set -euo pipefail
unset CDPATH

fail() { # SENTENCE
  echo "error: $1" >&2
  exit 2
}

absolute() { # PATH of what exists
  if [ -d "$1" ]; then (cd -- "$1" && pwd); else echo "$(cd -- "$(dirname -- "$1")" && pwd)/$(basename -- "$1")"; fi
}

# Arguments and variables.
[ $# -ge 2 ] || fail "expected scripts/train_bundled.sh CLIPS [CLIPS ...] OUTPUT, got $# argument(s)."
num_sets=$(($# - 1))
sets=()
for path in "${@:1:num_sets}"; do
  [ -e "$path" ] || fail "CLIPS '$path' does not exist; expected a folder of tar shards, frames or videos."
  [[ $num_sets -eq 1 || $path != *,* ]] || fail "the path of one of several CLIPS must not hold a comma, got '$path'."
  sets+=("$(absolute "$path")")
done
output=${!#}
unit=${STEP_UNIT:-200} config=${CONFIG:-small} workers=${NUM_WORKERS:-2} first_sets=${FIRST_SETS:-$num_sets}
[[ $unit =~ ^[1-9][0-9]{0,5}$ ]] || fail "STEP_UNIT must be a whole number from 1 on, got '$unit'."
[[ $config == small || $config == tiny ]] || fail "CONFIG must be small or tiny, got '$config'."
[[ $workers =~ ^[0-9]{1,3}$ ]] || fail "NUM_WORKERS must be a whole number, got '$workers'."
[[ $first_sets =~ ^[1-9][0-9]{0,3}$ && $first_sets -le $num_sets ]] ||
  fail "FIRST_SETS must be from 1 to the number of CLIPS, $num_sets, got '$first_sets'."
scripts=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-$(command -v python || echo python3)}
settings="STEP_UNIT=$unit CONFIG=$config FIRST_SETS=$first_sets$(printf '\n%s' "${sets[@]}")"
record="$output/train_bundled.txt"

# The output: new, or of an earlier call with the same settings.
[[ ! -e $output || -d $output ]] || fail "OUTPUT must be a folder, got the file '$output'."
if [ -f "$record" ]; then
  [ "$(cat "$record")" = "$settings" ] ||
    fail "OUTPUT '$output' was begun with other clips or variables (see '$record'); restore these, or choose another folder."
  if [ -d "$output/bundle" ]; then
    echo "Finished before: $output/bundle."
    exit 0
  fi
elif [ -d "$output" ] && [ -n "$(ls -A -- "$output")" ]; then
  fail "OUTPUT '$output' holds other files; give a new or empty folder after the CLIPS."
fi
nearest=$output
while [ ! -d "$nearest" ]; do nearest=$(dirname -- "$nearest"); done
nearest=$(absolute "$nearest")
for path in "${sets[@]}"; do
  [[ $nearest/ != "$path"/* ]] || fail "OUTPUT must lie outside of the CLIPS, got '$output' in '$path'."
done
command -v "$python" > /dev/null || fail "'$python' is not found; set PYTHON to a Python with amd-hf[train]."
"$python" - "${sets[@]}" << 'END' || exit 2
import sys

try:
    import accelerate, cv2, datasets, skimage, torchdata  # noqa
    from amd_hf.data.frame_pairs import open_source
except ImportError as error:
    sys.exit(
        f"error: {sys.executable} lacks what training needs ({error}); activate the environment with "
        'amd-hf (pip install "amd-hf[train]"), or set PYTHON to its Python.'
    )
for path in sys.argv[1:]:
    try:
        print(f"{len(open_source(path))} clips in {path}.", flush=True)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
END
mkdir -p -- "$output" || fail "OUTPUT '$output' cannot be made."
output=$(absolute "$output")
exec 9> "$output/.lock" # every process of a call holds it, also those that outlive a killed one
! command -v flock > /dev/null || flock --wait 10 9 ||
  fail "another call, or what is left of one, works in OUTPUT '$output'; wait for its end."
echo "$settings" > "$output/train_bundled.txt"

# Commands run in process groups of their own, so that a signal to this script ends all of their
# processes. Training answers with a checkpoint.
set -m
child=
stop() { # CODE
  trap '' TERM INT HUP
  if [ -n "$child" ]; then
    kill -TERM "$child" 2> /dev/null || true
    wait "$child" 2> /dev/null || true
    kill -TERM -- "-$child" 2> /dev/null || true # workers that outlive it
  fi
  echo "Stopped; the same call goes on from here." >&2
  exit "$1"
}
trap 'stop 143' TERM
trap 'stop 130' INT
trap 'stop 129' HUP

run() { # SCRIPT [options]
  "$python" "$scripts/$1" "${@:2}" < /dev/null &
  child=$!
  wait "$child"
  child=
}

masks() { # NUMBER: pseudo-masks of one set of clips, in masksNUMBER
  [ -f "$output/masks$1/index.json" ] && return
  echo "Pseudo-masks of ${sets[$1 - 1]}"
  # Sets may have clips of the same name.
  local prefix=()
  [ "$1" -eq 1 ] || prefix=(--key_prefix "set$1__")
  run make_pseudo_masks.py --dataset "${sets[$1 - 1]}" --output_dir "$output/masks$1" --use_saliency \
    --num_workers "$workers" ${prefix[@]+"${prefix[@]}"}
}

join_masks() { # NUMBER: the masks of the first sets in one folder, whose path becomes `joined`
  joined=$output/masks1
  [ "$1" -gt 1 ] || return 0
  joined=$output/masks1-$1
  [ -d "$joined" ] && return
  rm -rf -- "$joined.partial"
  mkdir -- "$joined.partial"
  local number shard target
  for ((number = 1; number <= $1; number++)); do
    for shard in "$output/masks$number"/shard-*.tar; do
      target=$joined.partial/set$number-$(basename -- "$shard")
      ln -- "$shard" "$target" 2> /dev/null || cp -- "$shard" "$target"
    done
  done
  mv -- "$joined.partial" "$joined"
}

join_clips() { # NUMBER: the first sets as one data set
  local IFS=,
  echo "${sets[*]:0:$1}"
}

train() { # NAME STAGES STEPS [options]: one run with its moving average
  [ -f "$output/$1/all_results.json" ] && return
  echo "Run $1: $3 steps of $2"
  ACCELERATE_USE_CPU=true run pretrain.py --recipe moving_objects --mixed_precision bf16 \
    --output_dir "$output/$1" --stages "$2" --max_train_steps "$3" --augmentation medium \
    --checkpointing_steps "$unit" --logging_steps $((unit < 50 ? unit : 50)) --dataloader_num_workers 1 \
    --validation_steps 0 --num_object_segment_pairs 0 --speed_report_seconds 0 \
    --resume_from_checkpoint latest "${@:4}"
}

# 1. Masks of what moves against the camera and stands out from the border.
for ((number = 1; number <= num_sets; number++)); do masks "$number"; done

# 2. The motion pathway follows classical flow.
train motion classical_flow $((13 * unit)) --config_name "$config" --checkpoints_total_limit 20 \
  --dataset "$(join_clips "$first_sets")" --crop_size 128x192 --per_device_train_batch_size 4 \
  --learning_rate 6e-4 --num_warmup_steps $((unit * 3 / 10)) --ema_decay 0.99 --seed 0

# 3. The appearance pathway learns the masks.
join_masks "$first_sets"
train round1 pseudo_mask $((8 * unit)) --config_name "$config" --checkpoints_total_limit 20 \
  --dataset "$joined" --crop_size 128x192 --per_device_train_batch_size 16 --learning_rate 2e-3 \
  --num_warmup_steps $((unit * 3 / 10)) --ema_decay 0.995 --seed 0

# 4. The same at a larger size. It starts from step 800 of 1600: on videos, later ones learn the
#    errors of the masks (training log).
join_masks "$num_sets"
train round2 pseudo_mask $((5 * unit)) --checkpoints_total_limit 20 --dataset "$joined" \
  --model_name_or_path "$output/round1/step_$((4 * unit))/ema" --crop_size 160x240 \
  --per_device_train_batch_size 16 --learning_rate 1.5e-3 --num_warmup_steps $((unit / 5)) \
  --ema_decay 0.995 --seed 2

# 5. Both pathways learn from segment flow, as published, with the pseudo-masks beside it. The
#    motion pathway is that of step 2000 of 2600.
merged=$output/round2+motion_step_$((10 * unit))
if [ ! -d "$merged" ]; then
  rm -rf -- "$merged.partial"
  run merge_pathways.py --appearance "$output/round2/ema" \
    --motion "$output/motion/step_$((10 * unit))/ema" --output_dir "$merged.partial"
  mv -- "$merged.partial" "$merged"
fi
train joint segment_flow_pseudo_mask $((unit > 1 ? unit : 2)) --dataset "$joined" \
  --model_name_or_path "$merged" --crop_size 160x240 --per_device_train_batch_size 8 \
  --learning_rate 3e-4 --num_warmup_steps $((unit / 10)) --ema_decay 0.97 --seed 4

# 6. The result.
rm -rf -- "$output/bundle.partial"
run bundle_checkpoint.py --model_name_or_path "$output/joint/ema" --dataset "$(join_clips "$num_sets")" \
  --short_side 176 --significant_bits 5 --output_dir "$output/bundle.partial" \
  --runs "$output/motion" "$output/round1" "$output/round2" "$merged" "$output/joint" \
  --reproduce "STEP_UNIT=$unit CONFIG=$config FIRST_SETS=$first_sets scripts/train_bundled.sh$(printf ' CLIPS_%d' $(seq "$num_sets")) OUTPUT"
mv -- "$output/bundle.partial" "$output/bundle"
echo "Finished: $output/bundle."
