"""Prepare data and train models in PyTorch.

Never imports click or the layers above it (ipsrec_export, ipsrec_cli).
"""
