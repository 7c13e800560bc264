"""Searched schedules: time steps by evolution, solver schedules by evolution and least squares."""
