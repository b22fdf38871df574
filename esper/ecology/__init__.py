"""Seeds and slots: what can be planted, how it comes in, and the order of its stages."""
