"""Experiments: a plan's rows trained, exported and evaluated over seeds, compared over users, and reported.

Home of optuna, scipy, matplotlib and jinja2. Never imports click or the command line.
"""
