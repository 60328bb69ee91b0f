"""Reading an attention off a graph: heads, rotations, masks, scores."""
