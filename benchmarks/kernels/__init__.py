"""The committed tables of `esper bench kernels`."""
