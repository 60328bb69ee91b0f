"""The simulator's ops, a template file each."""
