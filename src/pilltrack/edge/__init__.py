"""The device: what stands around an open bundle where pills are handed out."""
