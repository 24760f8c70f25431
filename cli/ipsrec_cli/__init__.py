"""The command line `ipsrec`: flags, messages, exit codes.

Imported by nobody.
"""
