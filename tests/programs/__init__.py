"""Random well-typed programs over all op rules, and what must hold for each of them."""
