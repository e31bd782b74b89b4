"""What cutting text needs of a model, in numpy: torch takes long to import, and nothing here needs gradients."""
