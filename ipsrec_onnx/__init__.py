"""Score users with a model file: Parquet in, ONNX Runtime, exact top-k, Parquet out.

Never imports torch, click, or the layers above it (ipsrec_train, ipsrec_export, ipsrec_cli).
"""
