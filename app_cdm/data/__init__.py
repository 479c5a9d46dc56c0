"""Images, masks and tags: files in and out, volumes to slices and back."""
