"""Linear layers on compressed weights: sparse in runs, int8, low-rank, gated, 2:4.

Each op has a folder: `reference.py` says what it computes, `op.py` makes it an operator of PyTorch,
`cpu.py` and `triton.py` are what runs. Importing `esper_kernels.ops` defines the operators, which
is also what a saved program that holds one needs before it is loaded.
"""
