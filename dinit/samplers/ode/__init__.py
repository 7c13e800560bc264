"""One-step solvers of the probability-flow ODE."""
