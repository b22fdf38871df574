"""Storyboards: what live surgery does to small models on real data, in a few minutes.

esper demo stage0 --short
"""
