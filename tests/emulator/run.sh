#!/bin/sh
# Makes random calls of the emulated CUDA kernels, under a sanitizer where one is named.
# Usage, from the project's root: tests/emulator/run.sh PYTHON address|thread|"" [arguments of fuzz.py]
set -eu
python=$1
sanitizer=$2
shift 2
"$python" -m tests.emulator.build "${sanitizer:-plain}" >/dev/null
# The sanitizers' runtimes have to come first; addresses must not be random for ThreadSanitizer. Only the kernels
# are instrumented. Leaks are not looked for: the interpreter never frees everything.
cxx=$(gcc -print-file-name=libstdc++.so)
case $sanitizer in
  "") exec "$python" -m tests.emulator.fuzz "$@" ;;
  address)
    export ASAN_OPTIONS=detect_leaks=0:halt_on_error=1:detect_stack_use_after_return=0
    LD_PRELOAD="$(gcc -print-file-name=libasan.so) $cxx" \
      exec "$python" -m tests.emulator.fuzz --variant address --special quick "$@" ;;
  thread)
    export OMP_NUM_THREADS=1 TSAN_OPTIONS=halt_on_error=0:report_signal_unsafe=0:history_size=4
    LD_PRELOAD="$(gcc -print-file-name=libtsan.so) $cxx" \
      exec setarch -R "$python" -m tests.emulator.fuzz --variant thread --special quick "$@" ;;
  *)
    echo "SANITIZE is address or thread, not $sanitizer" >&2
    exit 2 ;;
esac
