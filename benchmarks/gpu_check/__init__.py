"""`make gpu-check`: everything that only a machine with a GPU can say, in one command and under 7 minutes.

It needs no network and installs nothing: ``python3 -m benchmarks.gpu_check --out DIR`` in the root of the
project. ``--dry-run`` rehearses it on a CPU, with tiny sizes. `__main__` reads the command line, `plan` says
which parts there are, `runner` runs them, `readers` reads what other programs print, `report` writes the
result. The other modules are the parts themselves, each a program of its own.
"""
