"""The flight recorder: why each change was made, provable afterwards."""
