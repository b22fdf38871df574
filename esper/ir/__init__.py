"""The IR: a traced graph with stable names for its parts, and the algebra of its axes."""
