"""Tamiyo grows: plants a seed where the gradient asks for it, once the loss has stopped falling.

She advances nothing: what she planted blends in, holds and commits by its own criteria
(`esper.live.lifecycle`), or is culled.
"""
