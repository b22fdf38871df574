"""Linear layer on an int8 weight that is sparse in runs; inputs stay floating."""
