"""Linear layer on an int8 weight; inputs stay floating."""
