"""What the model is compared with: other ways to cut text, and byte models that write or judge it."""
