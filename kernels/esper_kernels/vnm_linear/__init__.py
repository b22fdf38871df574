"""Linear layer on a weight that is sparse in runs."""
