"""Stochastic solvers: discrete chains, reverse-time SDEs, Langevin corrections."""
