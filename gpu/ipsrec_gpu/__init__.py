"""Kernels for NVIDIA GPUs, in Triton: torch tensors in, tensors out.

Loaded where a GPU is asked for and torch and triton are installed (extra `triton`); never imports the layers above it,
onnxruntime or pyarrow.
"""
