"""Averages of weights: exponential and power-function EMAs, linear combinations of saved weights."""
