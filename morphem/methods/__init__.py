"""Methods, one file each: self-supervised objectives that train an encoder."""
