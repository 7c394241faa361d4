"""From a zip of pill photos to a bundle: one module per DVC stage, and what they share."""
