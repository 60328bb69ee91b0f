"""Where the auxiliary model comes from: folders, files, objects."""
