"""Channel strategies, one file each: how the planes of an image become one input."""
