#!/usr/bin/env bash
# Everything that needs a GPU, the most valuable first. Each step has a time limit, and none stops another. Run in the
# repository's root; no installation is needed:
#   DEADLINE=560 benchmarks/gpu.sh
# OUT       folder for results.tgz, which is packed anew after each step (default: gpu_results)
# DEADLINE  seconds after which no step begins or goes on (default: 560)
# STEPS     names of the steps to run (default: all, see below); steps joined by + run at the same time
# WHEELS    folder with wheels of packages that the machine lacks, such as deepspeed and megatron-core (default: none)
# DATA      folder with small/ and base/, each with a tokenizer/ and its shards/ (default: made of the corpus that ships)
set -uo pipefail
all='operators:150 smoke:60 data:180 tests:150+kernels:150+resume:150+launcher:90+learn:200 sampler:60 sampler_1024:60
  step:200 table7_whole:120 table7_large:120 table7:120 huggingface:120 existing:90 attention:60 cross_entropy:60 tiles:150'

operators() { python3 -m fast_electra.hosts.operators; }
smoke() { python3 benchmarks/gpu_smoke.py; }
sampler() { python3 benchmarks/sampler.py --rounds 15 --tune search --json "$LOG/sampler.json"; }
tiles() {
  python3 benchmarks/sampler.py --rounds 3 --tune tiles --json "$LOG/sampler_tiles.json" &&
    python3 benchmarks/attention.py --tune --json "$LOG/attention_tiles.json"
}
sampler_1024() { python3 benchmarks/sampler.py --hidden 1024 --rounds 10 --json "$LOG/sampler_1024.json"; }
cross_entropy() { python3 benchmarks/cross_entropy.py --positions 4928 --vocabulary 128000 --json "$LOG/cross_entropy.json"; }
attention() { python3 benchmarks/attention.py --json "$LOG/attention.json"; }
step() { python3 benchmarks/step.py --vocabulary 128000 --profile default many --json "$LOG/step.json" ${STEP:-}; }
huggingface() {  # a step as users get it, at two sizes
  python3 benchmarks/step_vs_huggingface.py --recipe base --engine --rounds 3 --json "$LOG/step_vs_huggingface_base.json" \
    --attention sdpa --tokenizer "$DATA/base/tokenizer" --shards "$DATA/base/shards" &&
    python3 benchmarks/step_vs_huggingface.py --recipe small --engine --rounds 5 --json "$LOG/step_vs_huggingface_small.json"
}
existing() { python3 benchmarks/existing_models.py --batch 128 --json "$LOG/existing_models.json"; }
tests() { python3 -m pytest -q -m gpu tests/test_gpu.py tests/model tests/training/test_graphs.py tests/kernels tests/finetuning; }
kernels() { python3 -m pytest -q -k triton tests/kernels/test_sample.py tests/kernels/test_triton_sampler.py; }
data() {  # two vocabularies, if no data are given; the corpus that ships fills 120,000 tokens
  local name input="--input sample --output $DATA"
  [ -d "$DATA" ] && return
  for name in small:8000 base:120000; do
    python3 -m fast_electra.cli tokenizer $input/${name%:*}/tokenizer --vocabulary ${name#*:} &&
      python3 -m fast_electra.cli corpus $input/${name%:*}/shards --tokenizer "$DATA/${name%:*}/tokenizer" --heldout 0.05 || return
  done
}
on_data() {  # small or base, script, config, run's name, further arguments
  local size tokenizer=$DATA/$1/tokenizer
  size=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["vocabulary_size"])' "$tokenizer/tokenizer.json") || return
  python3 "$2" --deepspeed_config "$3" --set "fast_electra.run=$WORK/$4" --set "fast_electra.corpus.shards=$DATA/$1/shards" \
    --set "fast_electra.corpus.tokenizer=$tokenizer" --set "fast_electra.model.vocabulary_size=$size" "${@:5}" ${ADAM:-}
}
table7_of() {  # base or large: seconds, memory, share of the GPU's peak
  local size=$1 name=$2; shift 2
  on_data base launch/measure.py "ds_configs/$size.json" "$name" --updates 3 --warmup 1 --rounds 1 --json "$LOG/$name.json" \
    --set fast_electra.auxiliary.run="$WORK/none" --set train_batch_size=256 "$@"
}
table7() { table7_of base table7 --set train_micro_batch_size_per_gpu=64; }
table7_whole() {  # without activation checkpointing
  table7_of base table7_whole --set train_micro_batch_size_per_gpu=64 --set fast_electra.model.activation_checkpointing=false
}
table7_large() {
  table7_of large table7_large --set train_micro_batch_size_per_gpu=32 --set fast_electra.model.activation_checkpointing=false
}
train() {  # config, run's name, updates, further arguments
  on_data small launch/pretrain.py "$1" "$2" --set "fast_electra.updates=$3" "${@:4}"
}
learn() {  # a short real run in the precision that `auto` finds
  local quick="--set scheduler.params.warmup_num_steps=100 --set fast_electra.model.relative_start=local
    --set fast_electra.model.initial_std=0.06 --set fast_electra.model.dropout=0 --set optimizer.params.lr=0.001"
  train ds_configs/small_auxiliary.json auxiliary 400 $quick && cp "$WORK/auxiliary/metrics.jsonl" "$LOG/auxiliary.jsonl" &&
    train ds_configs/small.json main 500 $quick --set "fast_electra.auxiliary.run=$WORK/auxiliary" &&
    cp "$WORK/main/metrics.jsonl" "$LOG/main.jsonl" && cp "$WORK/main/report.html" "$WORK/main/config.json" "$LOG/"
}
launcher() {  # as users start it
  python3 -m deepspeed.launcher.runner --num_gpus 1 launch/pretrain.py --deepspeed_config ds_configs/tiny_auxiliary.json \
    --set fast_electra.updates=20 --set "fast_electra.run=$WORK/launcher" --set fast_electra.model.vocabulary_size=8000 \
    --set "fast_electra.corpus.shards=$DATA/small/shards" --set "fast_electra.corpus.tokenizer=$DATA/small/tokenizer"
}
resume() {  # does a run from checkpoint 30 of 60 end exactly as the one that was not interrupted?
  train ds_configs/small_auxiliary.json one 60 --set scheduler.params.warmup_num_steps=20 --set fast_electra.checkpoint.every=30 && cp -r "$WORK/one" "$WORK/other" &&
    echo update-00000030 >"$WORK/other/checkpoints/latest" && rm "$WORK/other/status.json" &&
    train ds_configs/small_auxiliary.json other 60 --set scheduler.params.warmup_num_steps=20 --set fast_electra.checkpoint.every=30 && python3 - "$WORK" <<'PYTHON'
import sys
from safetensors.torch import load_file
one, other = (load_file(f"{sys.argv[1]}/{name}/model/model.safetensors") for name in ("one", "other"))
difference = max(float((one[name] - other[name]).abs().max()) for name in one)
print(f"a resumed run {'equals' if difference == 0 else 'differs from'} the uninterrupted one: {difference:.1e} at most")
PYTHON
}

if [ $# -gt 0 ]; then "$1"; exit; fi  # one step, in a process of its own that `timeout` can end

out=${OUT:-gpu_results} deadline=${DEADLINE:-560} failed=0
WORK=$(mktemp -d) && export WORK LOG=$WORK/results DATA=${DATA:-$WORK/data} && mkdir -p "$LOG" "$out" || exit 1
trap 'rm -rf "$WORK"' EXIT
if [ -n "${WHEELS:-}" ]; then
  python3 -m pip install -q --no-index --no-deps --no-compile --target "$WORK/site" "$WHEELS"/*.whl || exit 1
fi
export PYTHONPATH=$WORK/site:$PWD:$PWD/kernels${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false
nvidia-smi >"$LOG/nvidia-smi.txt" 2>&1
run() {  # name, seconds; prints the end of the step's output and how it went
  local name=$1 left=$((deadline - SECONDS)) limit=$2 began=$SECONDS result
  if [ $left -lt 15 ]; then
    result='skipped: no time is left'
  elif timeout -k 5 $((limit < left ? limit : left)) bash "$0" "$name" >"$LOG/$name.txt" 2>&1; then
    result="passed in $((SECONDS - began)) s" && tail -n "${LINES_SHOWN:-12}" "$LOG/$name.txt" | cut -c1-300
  else
    result="FAILED with exit code $? after $((SECONDS - began)) s" && tail -n 25 "$LOG/$name.txt" | cut -c1-300
  fi
  echo "$name $result" | tee -a "$LOG/summary.txt"
  [[ $result != FAILED* ]]
}
for group in $all; do
  jobs=()
  for entry in ${group//+/ }; do
    name=${entry%:*}
    [[ " ${STEPS:-$name} " == *" $name "* ]] || continue
    run "$name" "${entry#*:}" & jobs+=("$name:$!")
  done
  for job in ${jobs[@]+"${jobs[@]}"}; do
    wait "${job#*:}" && continue
    failed=1
    [ "${job%:*}" = operators ] && export ADAM='--set optimizer.params.torch_adam=true'  # runs need not try to build it again
  done
  tar -czf "$out/results.tgz" -C "$WORK" results
done
cat "$LOG/summary.txt"
exit $failed
