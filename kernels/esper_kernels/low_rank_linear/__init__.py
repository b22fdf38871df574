"""Linear layer on a weight given as two factors."""
