"""Queries, keys and values of an attention layer from one fused weight, in the order of use."""
