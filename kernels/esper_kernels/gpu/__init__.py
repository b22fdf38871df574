"""Triton code that the ops share. Importing it imports triton."""
