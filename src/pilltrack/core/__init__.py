"""What a device and the training machine must agree on to the bit; imports neither sibling."""
