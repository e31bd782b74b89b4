"""What is measured on what: the parts of an evaluation, and the runner that keeps what they found."""
