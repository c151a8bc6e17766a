"""The CUDA kernels on an emulator: what it checks, and what it cannot check.

``build.py`` turns the unchanged files of ``csrc/pooling/cuda`` and ``csrc/images/cuda`` into C++ and builds
them as separate operators, ``torch.ops.emulated``, with the same schemas. ``translate.py`` rewrites kernel
launches and ``__shared__`` declarations; ``include/cuda_runtime.h`` declares the rest of CUDA.
``scheduler.cpp`` runs the threads of a block as fibers, one at a time, in ascending, descending or random
order. ``kernels.py`` puts the emulated kernels behind the public functions, on CPU tensors.

The numbers are compared, bit for bit, with the CPU operators and with torchvision (``compare.py``) in random
calls (``calls.py``, ``images.py``) and chosen ones (``special.py``). The emulator also reports:

- barriers that are missing or not reached by all threads (wrong numbers under some order of threads, or a
  deadlock), and masks and shuffles with lanes that take no part;
- shared memory that is written beyond its end, read before it is written (it is filled with NaN), or larger
  than a GPU has;
- addresses that are not aligned for the type that is read, integer overflow, launches that CUDA refuses, and
  accesses to memory that does not exist.

Under ThreadSanitizer it reports races, under AddressSanitizer every access beyond a tensor. ``mutants.py``
breaks the kernels on purpose and shows that the faults are noticed.

The emulator cannot check what nvcc makes of the code, code between ``#if defined(__CUDA_ARCH__)`` and
``#else``, speed, streams, memory order between blocks that run at the same time, several launches at the same
time, or the libraries of a real device. ``fuzz.py --device cuda`` makes the same calls on a real device.
"""
