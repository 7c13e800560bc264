"""Exponential and multistep solvers: all are schedules of rules, whose coefficients are computed before a run."""
