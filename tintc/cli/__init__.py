"""What the commands of `tintc` do; their options are declared in `tintc_cli`."""
