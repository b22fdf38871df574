"""One self-contained HTML page, or one SVG, from plain data."""
