"""`make gpu-check`: checks and timings that need a machine with a GPU, in one command of about 7 minutes.

It needs no network and installs nothing: ``python3 -m benchmarks.gpu_check --out DIR`` in the root of the
project. ``--dry-run`` rehearses it on a CPU, with tiny sizes. `__main__` reads the command line, `plan` lists
the parts, `runner` runs them, `readers` reads what other programs print, and `report` writes the results. The
other modules are the parts, each a separate program.
"""
