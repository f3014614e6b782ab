"""Kernels and host code that every platform shares whose device Triton compiles for.

No file names a vendor but the tables of `architectures`. Importing this package imports nothing
else; its modules import torch and triton.
"""
