"""Linear layer on a 2:4 sparse weight of 16 bits."""
