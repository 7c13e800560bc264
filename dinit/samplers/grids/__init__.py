"""Time grids: decreasing float64 times on the CPU. Every grid works with every sampler."""
