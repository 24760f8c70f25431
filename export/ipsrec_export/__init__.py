"""Turn a trained model into one model file, and compare the two before it is written.

Never imports click or ipsrec_cli.
"""
