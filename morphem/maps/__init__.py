"""Pictures of what an encoder looks at: attention maps and patch-token maps of images."""
