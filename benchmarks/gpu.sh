#!/usr/bin/env bash
# Everything that needs a GPU, in under ten minutes: the tests marked `gpu`, the benchmarks, a short real run in 16 bit.
# Run in the repository's root, in an environment with the package's requirements. Results go to OUT (default: gpu_results/).
set -euo pipefail
out=${OUT:-gpu_results}
mkdir -p "$out"
export PYTHONPATH=$PWD:$PWD/kernels${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
nvidia-smi | tee "$out/nvidia-smi.txt"

failed=0  # a failure is reported at the end: the time on a GPU is used for the rest
python3 -m pytest -q -m gpu tests/test_gpu.py tests/training/test_graphs.py | tee "$out/tests.txt" || failed=1
python3 -m pytest -q -k triton tests/kernels/test_sample.py tests/kernels/test_triton_sampler.py | tee "$out/tests_sampler.txt" || failed=1
# The sampler: ratios, memory, and other tiles than those in use; then whole steps.
python3 benchmarks/sampler.py --tune --json "$out/sampler.json" | tee "$out/sampler.txt" || failed=1
python3 benchmarks/sampler.py --hidden 1024 --rounds 10 --json "$out/sampler_large.json" | tee "$out/sampler_large.txt" || failed=1
python3 benchmarks/step_vs_huggingface.py --recipe small --json "$out/step_vs_huggingface.json" | tee "$out/step_vs_huggingface.txt" || failed=1

# The quickstart's job with ELECTRA-small's layers, in the precision that `auto` finds.
run=$(mktemp -d)
python3 -m fast_electra.cli tokenizer --input sample --output "$run/tokenizer" --vocabulary 8000
python3 -m fast_electra.cli corpus --input sample --tokenizer "$run/tokenizer" --output "$run/shards" --heldout 0.05
common=(--set "fast_electra.corpus.shards=$run/shards" --set "fast_electra.corpus.tokenizer=$run/tokenizer"
        --set fast_electra.model.vocabulary_size=8000 --set scheduler.params.warmup_num_steps=50 --set fast_electra.updates=400)
command -v nvcc >/dev/null || common+=(--set optimizer.params.torch_adam=true)  # DeepSpeed's own is compiled
for name in auxiliary discriminator; do
    config=ds_configs/small.json
    [ $name = auxiliary ] && config=ds_configs/small_auxiliary.json
    more=(--set "fast_electra.run=$run/$name")
    [ $name = auxiliary ] || more+=(--set "fast_electra.auxiliary.run=$run/auxiliary")
    python3 launch/pretrain.py --deepspeed_config $config "${common[@]}" "${more[@]}" || failed=1
    cp "$run/$name/metrics.jsonl" "$out/$name.jsonl" || failed=1
done
cp "$run/discriminator/config.json" "$run/discriminator/report.html" "$out/" || failed=1
exit $failed
