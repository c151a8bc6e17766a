"""The CUDA kernels on an emulator: what it checks, and what it cannot.

``build.py`` turns the unchanged files of ``csrc/cuda`` into C++ (``translate.py`` rewrites launches and
``__shared__`` declarations, ``include/cuda_runtime.h`` declares the rest of CUDA) and builds them as
operators of their own, ``torch.ops.emulated``, with the schemas of ``csrc/library.cpp``. ``scheduler.cpp``
runs a block's threads as fibers, one at a time, in ascending, descending or random order. ``kernels.py``
puts them behind the public functions, on CPU tensors.

It checks numbers, bit for bit, against the CPU operators and against torchvision (``compare.py``) in random
calls (``calls.py``) and chosen ones (``special.py``), and it reports barriers that are missing or not met
by all (wrong numbers under some order of threads, a deadlock), masks and shuffles of lanes that take no
part, shared memory that is written beyond its end, read before it is written (it is full of NaN) or more
than a GPU has, addresses that are not aligned for what is read from them, overflow, launches that CUDA
refuses, and memory that is not there. Under ThreadSanitizer it reports races, under AddressSanitizer every
access beyond a tensor. ``mutants.py`` breaks the kernels on purpose and shows that this is noticed.

It cannot check what nvcc makes of the code, code between ``#if defined(__CUDA_ARCH__)`` and ``#else``,
speed, streams, memory order between blocks that run at once, several launches at a time, or a real device's
libraries. ``fuzz.py --device cuda`` makes the same calls on one.
"""
