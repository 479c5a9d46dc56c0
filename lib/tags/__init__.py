"""Image-level tags: kept, checked, imported and exported, whatever datastore the images are in."""
