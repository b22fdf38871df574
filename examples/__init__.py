"""Real models and data, and what `esper-opt` needs to work on them."""
