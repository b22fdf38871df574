"""`esper bench kernels`: the ops of `esper_kernels` beside the best that is there without them.

A package of its own because it needs both sides: the kernels, which know nothing of the toolkit,
and the toolkit's statistics, pictures and command line, which know nothing of kernels.
"""
