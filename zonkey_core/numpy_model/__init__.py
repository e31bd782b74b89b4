"""What cutting text needs of a model, in numpy: torch takes a second and a half to import, and this has no gradients."""
