"""Log-likelihood by the probability-flow ODE, and the variational bound, in bits/dim."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dinit.likelihood.bound import VariationalBound as VariationalBound
    from dinit.likelihood.bound import variational_bound as variational_bound
    from dinit.likelihood.ode import Exact as Exact
    from dinit.likelihood.ode import Hutchinson as Hutchinson
    from dinit.likelihood.ode import LogLikelihood as LogLikelihood
    from dinit.likelihood.ode import Trace as Trace
    from dinit.likelihood.ode import dequantise as dequantise
    from dinit.likelihood.ode import log_likelihood as log_likelihood
else:
    from dinit._exports import attach

    __getattr__, __dir__, __all__ = attach(__name__, __file__)
