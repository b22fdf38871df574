"""The gated half of a feed-forward block, act(x gate^T) * (x up^T), in one op."""
