"""Surgery while a model trains: what shadows its tensors follows, and nothing else moves."""
