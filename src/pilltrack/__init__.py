"""PillTrack: photos of pills go in, a bundle that names pills on a small device comes out."""

__version__ = "0.1.0"
