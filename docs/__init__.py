"""Pages, and the scripts that keep what they show true."""
