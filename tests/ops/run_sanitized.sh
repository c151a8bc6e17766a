#!/bin/sh
# Builds the CPU library with AddressSanitizer and UndefinedBehaviorSanitizer in a folder of its own and runs the
# tests of the operators on it, and their fuzz scripts for a while.
# Usage, from the project's root: tests/ops/run_sanitized.sh [python]
set -eu
python=$(command -v "${1:-.venv/bin/python}")
case $python in /*) ;; *) python=$PWD/$python ;; esac
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
for part in setup.py pyproject.toml README.md LICENSE csrc detector tests; do
  if [ -e "$part" ]; then cp -R "$part" "$copy"; fi
done
cd "$copy"
rm -f detector/*.so
DETECTOR_SANITIZE=1 "$python" setup.py --quiet build_ext --inplace
# Leaks are not looked for: the interpreter never frees everything. The compiler's runtimes have to come first.
sanitized() {
  LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so) $(gcc -print-file-name=libstdc++.so)" \
  ASAN_OPTIONS=detect_leaks=0:halt_on_error=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 PYTHONPATH=. \
    "$python" "$@"
}
sanitized -m pytest -q tests/ops tests/proposals/test_bulk.py tests/proposals/test_filtering.py \
  tests/models/test_roi_sampler.py -p no:cacheprovider -k "not compiles and not exports"
sanitized tests/ops/fuzz_pooling.py --calls 5000
sanitized tests/ops/fuzz_selective_search.py --images 60
