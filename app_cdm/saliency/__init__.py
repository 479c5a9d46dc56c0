"""One saliency method a file, and their combination with the activation map."""
