"""Triton kernels of the torch runtime, one idea a file; `triton_ops` launches them.

What `triton.jit` compiles is a dialect of Python: shapes of tiles are upper-case arguments, known
when a kernel is compiled, and pointers are the tensors that were passed. docs/decisions/0033.
"""
