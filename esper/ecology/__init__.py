"""Growth and decay: stages, the immune ledger, scars, evidence, and the rules that read them."""
