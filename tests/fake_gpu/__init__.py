"""A torch device that computes on the CPU and behaves like a GPU, to check the code around the kernels.

``device.py`` refuses calls whose tensors lie on two devices, as CUDA does, and counts what makes the host
wait for a GPU, with the place in the code; copies from memory that is not page-locked are counted too. A
stream that uses a tensor of another stream has to wait for it, and the tensor has to be recorded for it. The
pooling operators run the emulated CUDA kernels. ``training.py`` trains on it; ``test_fake_gpu.py`` defines
how many waits a training step may have.

It cannot check speed, memory or autocast on CUDA, and its streams compute at once. It depends on a private
helper of torch, ``_setup_privateuseone_for_python_backend``; with a torch that lacks it, the tests are
skipped.
"""
