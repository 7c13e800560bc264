"""Posterior guidance: frozen dataclasses that turn E[x0 | x_t] into E[x0 | x_t, y]. They nest with all others."""
