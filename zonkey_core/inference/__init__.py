"""What a trained model is used for: cutting text, writing it, filling gaps in it, and scoring it."""
