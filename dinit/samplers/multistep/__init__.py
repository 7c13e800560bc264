"""Exponential and multistep solvers of the probability-flow ODE."""
