"""A torch device that computes on the CPU and answers like a GPU, to check the code around the kernels.

``device.py`` refuses calls whose tensors lie on two devices, as CUDA does, and counts what makes the host
wait for a GPU, with the place in the code. The pooling operators run the emulated CUDA kernels.
``training.py`` trains on it; ``test_fake_gpu.py`` says how many waits a training step may have.

It says nothing of speed, of memory, of streams or of autocast on CUDA. It rests on a private helper of torch,
``_setup_privateuseone_for_python_backend``: where a torch lacks it, the tests are skipped.
"""
