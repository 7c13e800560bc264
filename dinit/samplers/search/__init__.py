"""Searched schedules: time steps by evolution, solver schedules by least squares."""
