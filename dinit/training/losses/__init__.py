"""The terms of the loss, their weighting in time, and the distribution of training times."""
