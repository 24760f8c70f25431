"""Numba kernels: NumPy arrays in, arrays out.

Never imports anything else of this project, and knows no files.
"""
