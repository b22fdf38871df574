"""Linear layer of integers: an int8 weight, sparse in runs, and inputs rounded row by row."""
